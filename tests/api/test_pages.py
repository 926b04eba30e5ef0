"""The page, its files and the API page: they work without a network, and under a strict policy."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

WEB = Path(__file__).parents[2] / "app" / "web"
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
MEDIA = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}


def policy(response) -> dict[str, str]:
    pairs = (part.strip().partition(" ") for part in response.headers["content-security-policy"].split(";"))
    return {name: sources for name, _, sources in pairs}


class Elements(HTMLParser):
    """The tags of a page, their attributes, and the text of its inline scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip() and self.tags[-1][0] in {"script", "style"} and self.lasttag in {"script", "style"}:
            self.inline.append((self.lasttag, data))

    @property
    def links(self) -> list[str]:
        return [a[name] for _, a in self.tags for name in ("src", "href", "action", "srcset") if a.get(name)]


@pytest.fixture(params=["/", "/docs"])
def page(api, request):
    response = api.get(request.param)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response


def test_a_page_is_under_a_strict_policy(page):
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    found = policy(page)
    if page.url.path == "/":
        assert found == POLICY
    else:
        # Swagger UI sets styles from its script; its scripts are files, and one that is named by its hash.
        assert found.pop("style-src") == "'self' 'unsafe-inline'"
        assert re.fullmatch(r"'self' 'sha256-[\w+/]{43}='", found.pop("script-src"))
        assert found == {name: sources for name, sources in POLICY.items() if name in found}


def test_the_inline_script_of_the_api_page_is_the_one_that_is_allowed(api):
    response = api.get("/docs")
    ((kind, script),) = Elements(response.text).inline
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert kind == "script"
    assert f"'sha256-{digest}'" in policy(response)["script-src"].split()


def test_the_page_holds_nothing_inline(api):
    elements = Elements(api.get("/").text)
    assert elements.inline == []
    attributes = {name for _, attributes in elements.tags for name in attributes}
    assert "style" not in attributes
    assert not any(name.startswith("on") for name in attributes)


def test_a_page_asks_nobody_else_and_all_it_asks_for_is_there(api, page):
    links = Elements(page.text).links
    assert links
    for link in links:
        if link.startswith("#"):
            continue
        assert not urlsplit(link).netloc
        assert api.get(urljoin(page.url.path, link)).status_code == 200
    assert not re.findall(r"https?://(?!fooddx)[\w.]+", page.text)


def test_the_api_page_shows_our_own_openapi(api):
    assert "url: '/openapi.json'" in api.get("/docs").text
    assert api.get("/openapi.json").headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", sorted(path.name for path in WEB.iterdir()))
def test_every_file_of_the_page_is_served(api, name):
    response = api.get(f"/static/{name}")
    assert response.content == (WEB / name).read_bytes()
    assert response.headers["content-type"] == MEDIA[Path(name).suffix]


@pytest.mark.parametrize("name", sorted(path.name for path in WEB.glob("*.*")))
def test_no_file_of_the_page_names_another_host(name):
    text = (WEB / name).read_text()
    hosts = set(re.findall(r"(?:https?:)?//([\w-]+\.[\w.-]+)", text))
    assert hosts <= {"www.w3.org"}, "the namespace of SVG is a name, and nobody asks there"


def test_the_modules_of_the_page_import_each_other_only(api):
    for module in WEB.glob("*.js"):
        for name in re.findall(r"""(?:import|from)\s*\(?["']([^"']+)["']""", module.read_text()):
            assert api.get(urljoin(f"/static/{module.name}", name)).status_code == 200


# Caching


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/static/app.js", "/static/style.css", "/v1/models", "/healthz"]
)
def test_everything_is_asked_for_again(api, path):
    assert api.get(path).headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/static/app.js", "/docs/assets/swagger-ui.css"])
def test_a_file_that_did_not_change_is_not_sent_again(api, path):
    tag = api.get(path).headers["etag"]
    response = api.get(path, headers={"If-None-Match": tag})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["cache-control"] == "no-cache"
