"""The page at ``/`` as a person uses it: in a real browser, against the running service."""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect
from skimage import data

from app.errors import tree
from app.schemas import Profile

pytestmark = [pytest.mark.browser, pytest.mark.server]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WORDS = "Rarely|Now and then|Fair|Good|Great choice"
UNSCORED = re.compile("^(No food found|Waiting for a nutritionist)$")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PHONE = {
    "viewport": {"width": 360, "height": 740},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


def jpeg(pixels: np.ndarray) -> bytes:
    """JPEG bytes no other test sends: the same picture again would count as a duplicate."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90, comment=uuid.uuid4().bytes)
    return out.getvalue()


def photo(
    name: str = "lunch.jpg", content: bytes | None = None, media_type: str = "image/jpeg"
) -> FilePayload:
    content = jpeg(data.coffee()) if content is None else content
    return {"name": name, "mimeType": media_type, "buffer": content}


def sign_in(page: Page, service: Any) -> None:
    page.goto(f"/#key={service.api_key}")


def choose(page: Page, *photos: FilePayload) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose photos").click()
    chooser.value.set_files(list(photos))


def send_event(page: Page, kind: str, *photos: FilePayload) -> None:
    """Drops or pastes files: the one thing a test cannot do by hand."""
    files = [{**p, "buffer": base64.b64encode(p["buffer"]).decode()} for p in photos]
    page.evaluate(
        """([kind, files]) => {
            const transfer = new DataTransfer();
            for (const { name, mimeType, buffer } of files) {
                const bytes = Uint8Array.from(atob(buffer), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: mimeType }));
            }
            const init = { bubbles: true, cancelable: true };
            const target = document.getElementById("drop");
            if (kind === "paste") {
                target.dispatchEvent(new ClipboardEvent("paste", { ...init, clipboardData: transfer }));
            } else {
                for (const type of ["dragover", "drop"]) {
                    target.dispatchEvent(new DragEvent(type, { ...init, dataTransfer: transfer }));
                }
            }
        }""",
        [kind, files],
    )


def expect_scored(page: Page) -> None:
    expect(page.locator(".score-number")).to_have_text(re.compile(r"[1-5] of 5"))
    expect(page.locator("#result h2")).to_have_text(re.compile(f"^({WORDS})$"))


def settle(page: Page) -> None:
    page.evaluate(
        "Promise.allSettled(document.getAnimations().map((animation) => animation.finished)).then(() => {})"
    )


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    settle(page)
    phone = page.viewport_size["width"] < 400  # Chromium forgets the touch screen while it shoots a full page
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=not phone)


def answer(status: int, code: str, **headers: str) -> Callable[[Route], None]:
    """A canned problem, for states the real service reaches only under load."""
    problem = {
        "type": "about:blank",
        "title": "t",
        "status": status,
        "detail": "d",
        "code": code,
        "request_id": "r-1",
    }
    return lambda route: route.fulfill(
        status=status, body=json.dumps(problem), content_type="application/problem+json", headers=headers
    )


class Gate:
    """Keeps photos on their way, unanswered, until the test opens it."""

    def __init__(self, page: Page) -> None:
        self.held: list[Route] = []
        self.is_open = False
        page.route("**/v1/scores", self.arrive)

    def arrive(self, route: Route) -> None:
        if self.is_open:
            route.continue_()
        else:
            self.held.append(route)

    def open(self) -> None:
        self.is_open = True
        for route in self.held:
            route.continue_()


# --- a photo in, a result out ---------------------------------------------------------------------


def test_a_chosen_photo_shows_its_whole_result(page: Page, service: Any) -> None:
    sign_in(page, service)
    with page.expect_response("**/v1/scores") as response:
        choose(page, photo())
    expect_scored(page)
    result = response.value.json()
    expect(page.locator(".score-number")).to_have_text(f"{result['score']} of 5")
    expect(page.locator(".steps li[aria-current]")).to_contain_text(str(result["score"]))
    expect(page.locator(".steps li")).to_have_count(5)
    expect(page.locator(".chart li")).to_have_count(5)
    expect(page.locator(".plate li")).to_have_count(len(result["dishes"]))
    expect(page.locator(".plate li").first).to_contain_text(result["dishes"][0]["name"])
    expect(page.locator(".plate li .figure").first).to_have_text(re.compile(r"^\d+%$"))
    expect(page.locator(".tip")).to_contain_text(result["tip"]["text"])
    expect(page.locator(".tip cite")).to_have_text(result["tip"]["source"])
    expect(page.locator(".facts")).to_contain_text(result["image"]["sha256"][:12])
    expect(page.locator(".facts")).to_contain_text(f"{result['model']['name']} {result['model']['version']}")
    stages = re.findall(r"(\w+);", response.value.headers["server-timing"])
    for stage in {"auth", "dedupe", "store", "queue", "decode", "score", "tip"} & set(stages):
        expect(page.locator(f".stages [data-stage={stage}] dd")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator(".stages [data-stage=score]")).to_be_visible()
    expect(page.get_by_role("img", name="Your photo: lunch.jpg")).to_be_visible()
    shoot(page, "desktop-result")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_dropped_or_pasted_is_scored(page: Page, service: Any, kind: str) -> None:
    sign_in(page, service)
    send_event(page, kind, photo())
    expect_scored(page)


def test_pasting_text_sends_nothing(page: Page, service: Any) -> None:
    sign_in(page, service)
    send_event(page, "paste")
    expect(page.get_by_role("heading", name="How to read the score")).to_be_visible()


@pytest.mark.parametrize("context_options", [PHONE])
def test_a_phone_offers_its_camera(page: Page, service: Any) -> None:
    sign_in(page, service)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files([photo()])
    expect_scored(page)


def test_the_body_is_the_photo_itself(page: Page, service: Any) -> None:
    sign_in(page, service)
    lunch = photo()
    with page.expect_request("**/v1/scores") as sent:
        choose(page, lunch)
    assert sent.value.headers["content-type"] == "image/jpeg"
    assert sent.value.headers["idempotency-key"]
    expect_scored(page)


def test_the_same_photo_again_is_called_a_duplicate(page: Page, service: Any) -> None:
    sign_in(page, service)
    lunch = photo()
    choose(page, lunch)
    expect_scored(page)
    expect(page.locator(".score .note")).to_have_count(0)
    choose(page, lunch)
    expect(page.locator(".score .note")).to_contain_text("You sent this photo before")


@pytest.mark.parametrize("picture", ["astronaut", "brick"])
def test_a_photo_without_food_gets_words_and_no_score(page: Page, service: Any, picture: str) -> None:
    sign_in(page, service)
    choose(page, photo(f"{picture}.jpg", jpeg(getattr(data, picture)())))
    expect(page.locator("#result h2")).to_have_text(
        re.compile("^(No food found|Waiting for a nutritionist)$")
    )
    expect(page.locator(".score-number")).to_have_count(0)


def test_a_result_in_review_says_so(page: Page, service: Any) -> None:
    def unsure(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "status": "needs_review", "score": None})

    page.route("**/v1/scores", unsure)
    sign_in(page, service)
    choose(page, photo())
    expect(page.locator("#result h2")).to_have_text("Waiting for a nutritionist")
    expect(page.locator(".tile .badge")).to_have_text("–")


def test_the_hash_can_be_copied_whole(page: Page, service: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=service.url)
    sign_in(page, service)
    with page.expect_response("**/v1/scores") as response:
        choose(page, photo())
    page.get_by_role("button", name="Copy the full SHA-256 hash").click()
    expect(page.get_by_role("status")).to_have_text("Hash copied.")
    assert page.evaluate("navigator.clipboard.readText()") == response.value.json()["image"]["sha256"]


def test_several_photos_are_queued_three_at_a_time(page: Page, service: Any) -> None:
    gate = Gate(page)
    sign_in(page, service)
    choose(page, *(photo(f"{n}.jpg") for n in range(5)))
    expect(page.locator(".tile", has_text="Scoring…")).to_have_count(3)
    expect(page.locator(".tile", has_text="Waiting")).to_have_count(2)
    assert len(gate.held) <= 3
    gate.open()
    expect(page.locator(".tile .badge.scored")).to_have_count(5)


# --- the key --------------------------------------------------------------------------------------


def test_the_key_leaves_the_address_bar_and_lasts_for_the_tab(page: Page, service: Any) -> None:
    sign_in(page, service)
    expect(page).to_have_url(f"{service.url.rstrip('/')}/")
    page.reload()
    choose(page, photo())
    expect_scored(page)


def test_without_a_key_the_page_asks_and_then_scores(page: Page, service: Any) -> None:
    page.goto("/")
    page.get_by_role("button", name="Cancel").click()
    choose(page, photo())
    page.get_by_label("API key", exact=True).fill(service.api_key)
    page.get_by_role("button", name="Use this key").click()
    expect_scored(page)


def test_a_link_with_a_key_opened_in_the_same_tab_signs_in(page: Page, service: Any) -> None:
    page.goto("/")
    expect(page.get_by_role("dialog")).to_be_visible()
    sign_in(page, service)
    expect(page.get_by_role("dialog")).to_have_count(0)
    choose(page, photo())
    expect_scored(page)


def test_a_wrong_key_is_asked_for_again(page: Page, service: Any) -> None:
    page.goto("/#key=wrong")
    choose(page, *(photo(f"{n}.jpg") for n in range(4)))
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("That key was not accepted")
    dialog.get_by_label("API key", exact=True).fill(service.api_key)
    page.keyboard.press("Enter")
    expect_scored(page)
    expect(page.locator(".tile .badge.scored")).to_have_count(4)


# --- errors ---------------------------------------------------------------------------------------


def test_what_is_not_an_image_is_said_in_plain_words(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo("notes.txt", b"two eggs, toast", "text/plain"))
    expect(page.locator(".failure h2")).to_have_text("This is not a photo we can read")
    expect(page.locator(".failure .lead")).to_contain_text("JPEG")
    expect(page.locator(".failure .code")).to_contain_text(
        re.compile(r"unsupported_media_type.* request .{8,}")
    )
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    shoot(page, "desktop-error")


def test_every_error_of_the_service_has_words(page: Page, service: Any) -> None:
    sign_in(page, service)
    known = page.evaluate("import('/static/words.js').then((words) => Object.keys(words.ERRORS))")
    assert {cls.code for cls in tree()} <= set(known)


def test_when_busy_the_button_counts_down_and_keeps_the_idempotency_key(page: Page, service: Any) -> None:
    page.clock.install()
    keys: list[str] = []
    page.on("request", lambda r: r.method == "POST" and keys.append(r.headers["idempotency-key"]))
    page.route("**/v1/scores", answer(429, "overloaded", **{"Retry-After": "30"}))
    sign_in(page, service)
    choose(page, photo())
    button = page.get_by_role("button", name="Try again")
    expect(button).to_have_text(re.compile(r"Try again in (30|29) s"))
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(page.locator(".failure h2")).to_have_text("The service is busy")
    button.click(force=True)  # too early: nothing happens
    page.unroute("**/v1/scores")
    page.clock.run_for(31_000)
    expect(button).to_have_text("Try again")
    button.click()
    expect_scored(page)
    assert len(keys) == 2
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda route: route.abort(), "The connection broke"),
        (answer(503, "scorer_unavailable"), "The service cannot answer just now"),
        (answer(504, "deadline_exceeded"), "It took too long"),
        (lambda route: route.fulfill(status=500, body="<h1>proxy</h1>"), "Something went wrong on our side"),
    ],
    ids=["network", "503", "504", "proxy"],
)
def test_a_passing_failure_can_be_retried(
    page: Page, service: Any, fail: Callable[[Route], None], words: str
) -> None:
    page.route("**/v1/scores", fail)
    sign_in(page, service)
    choose(page, photo())
    expect(page.locator(".failure h2")).to_have_text(words)
    page.unroute("**/v1/scores")
    page.get_by_role("button", name="Try again").click()
    expect_scored(page)


# --- history --------------------------------------------------------------------------------------


def test_history_shows_again_survives_a_reload_and_deletes(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo("first.jpg"))
    expect_scored(page)
    choose(page, photo("rock.jpg", jpeg(data.astronaut())))
    expect(page.locator("#history-list li")).to_have_count(2)
    expect(page.locator("#result h2")).to_have_text(UNSCORED)
    page.locator("#history-list .tile").nth(1).click()  # newest first, so this is the first one
    expect_scored(page)
    page.reload()
    expect(page.locator("#history-list li")).to_have_count(2)
    with page.expect_request(lambda request: request.method == "DELETE") as request:
        page.locator("#history-list .bin").nth(1).click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#history-list li")).to_have_count(1)
    assert request.value.response().status == 204
    page.get_by_role("button", name="Clear list").click()
    expect(page.locator("#history")).to_be_hidden()
    page.reload()
    expect(page.locator("#history")).to_be_hidden()


def test_a_photo_stays_listed_when_its_deletion_fails(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo())
    expect_scored(page)
    page.route("**/v1/scores/*", answer(503, "results_unavailable"))
    page.locator("#history-list .bin").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("The photo was not deleted")
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#history-list li")).to_have_count(1)


def test_a_photo_that_the_service_may_have_goes_off_the_list_with_a_word(page: Page, service: Any) -> None:
    page.route("**/v1/scores", lambda route: route.abort())
    sign_in(page, service)
    choose(page, photo())
    expect(page.locator(".failure h2")).to_have_text("The connection broke")
    page.locator("#history-list .bin").click()
    expect(page.get_by_role("dialog")).to_contain_text("The service may still have the photo.")
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#history-list li")).to_have_count(1)
    page.locator("#history-list .bin").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#history")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("Off this list. The service may still have the photo.")


def test_a_photo_that_the_service_refused_is_removed_at_once(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo("notes.txt", b"two eggs, toast", "text/plain"))
    expect(page.locator(".failure h2")).to_have_text("This is not a photo we can read")
    page.locator("#history-list .bin").click()
    expect(page.locator("#history")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("Removed.")


def test_forgetting_the_key_empties_the_tab(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo())
    expect_scored(page)
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget key and list").click()
    expect(page.locator("#history")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0


# --- profile --------------------------------------------------------------------------------------


def form_fields(body: bytes) -> dict[str, bytes]:
    parts = body.split(body.split(b"\r\n", 1)[0])[1:-1]
    heads = [part.split(b"\r\n\r\n", 1) for part in parts]
    return {
        re.search(rb'name="(\w+)"', head)[1].decode(): value.removesuffix(b"\r\n") for head, value in heads
    }


def test_a_vegan_profile_is_sent_kept_and_taken_back(page: Page, service: Any) -> None:
    bodies: list[bytes] = []

    def spy(route: Route) -> None:
        bodies.append(route.request.post_data_buffer or b"")
        route.continue_()

    page.route("**/v1/scores", spy)
    sign_in(page, service)
    page.get_by_role("button", name="For you").click()
    page.get_by_role("checkbox", name="Vegan").check()
    page.get_by_role("checkbox", name="Tree nuts").check()
    page.get_by_label("User name").fill("ada@example.org")
    shoot(page, "desktop-profile")
    page.get_by_role("button", name="Save").click()
    page.reload()
    expect(page.locator("#profile-count")).to_have_text("3")
    lunch = photo()
    choose(page, lunch)
    expect_scored(page)
    sent = json.loads(form_fields(bodies[0])["profile"])
    assert sent == {"user": "ada@example.org", "diet": ["vegan"], "avoid": ["tree-nut"]}
    page.get_by_role("button", name="For you").click()
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Save").click()
    with page.expect_request("**/v1/scores") as request:
        choose(page, photo())
    assert request.value.headers["content-type"] == "image/jpeg"


def test_every_choice_of_the_profile_is_one_the_service_takes(page: Page, service: Any) -> None:
    sign_in(page, service)
    page.get_by_role("button", name="For you").click()
    offered = page.evaluate(
        "import('/static/words.js').then(({ PROFILE }) =>"
        " Object.fromEntries(Object.entries(PROFILE).map(([group, labels]) => [group, Object.keys(labels)])))"
    )
    expect(page.get_by_role("checkbox")).to_have_count(sum(map(len, offered.values())))
    taken = Profile.model_json_schema()["properties"]
    assert {group: sorted(values) for group, values in offered.items()} == {
        group: sorted(taken[group]["items"]["enum"]) for group in ("goals", "diet", "avoid")
    }


def test_a_user_name_the_service_would_refuse_is_not_saved(page: Page, service: Any) -> None:
    sign_in(page, service)
    page.get_by_role("button", name="For you").click()
    page.get_by_label("User name").fill("two words")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("localStorage.getItem('fooddx.profile')") is None


# --- for everyone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_scrolls_sideways(page: Page, service: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    sign_in(page, service)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    choose(page, photo("a-very-long-file-name-" + "x" * 80 + ".jpg"))
    expect_scored(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="For you").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("context_options", [PHONE])
def test_on_a_phone_the_result_is_readable(page: Page, service: Any) -> None:
    sign_in(page, service)
    shoot(page, "phone-start")
    choose(page, photo())
    expect_scored(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shoot(page, "phone-result")


@pytest.mark.parametrize("context_options", [{"color_scheme": "dark"}])
def test_dark_mode_keeps_text_readable(page: Page, service: Any) -> None:
    sign_in(page, service)
    choose(page, photo())
    expect_scored(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 18)"
    assert low_contrast(page) == []
    shoot(page, "dark-result")


def test_text_meets_the_contrast_of_wcag_aa(page: Page, service: Any) -> None:
    sign_in(page, service)
    assert low_contrast(page) == []
    shoot(page, "desktop-start")
    choose(page, photo())
    expect_scored(page)
    assert low_contrast(page) == []
    choose(page, photo("notes.txt", b"toast", "text/plain"))
    expect(page.locator(".failure")).to_be_visible()
    assert low_contrast(page) == []


def low_contrast(page: Page) -> list[str]:
    """Elements whose text is below 4.5:1 against what is painted behind (WCAG 2.2, 1.4.3, its luminance)."""
    settle(page)
    found: list[str] = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgba = (css) => {
                canvas.clearRect(0, 0, 1, 1);
                canvas.fillStyle = css;
                canvas.fillRect(0, 0, 1, 1);
                return canvas.getImageData(0, 0, 1, 1).data;
            };
            const luminance = ([r, g, b]) => {
                const [x, y, z] = [r, g, b].map((v) => v / 255).map(
                    (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * x + 0.7152 * y + 0.0722 * z;
            };
            const behind = (node) => {
                const colour = rgba(getComputedStyle(node).backgroundColor);
                return colour[3] === 255 || !node.parentElement ? colour : behind(node.parentElement);
            };
            const low = [];
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const node = walker.currentNode.parentElement;
                if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
                const [a, b] = [rgba(getComputedStyle(node).color), behind(node)].map(luminance);
                if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.push(node.outerHTML);
            }
            return low;
        }"""
    )
    return found


def test_the_keyboard_alone_is_enough(page: Page, service: Any) -> None:
    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
            )
            if re.search(name, focused):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"no visible focus on {name}"
                return
        pytest.fail(f"{name} was not reached by Tab")

    page.goto("/")
    shoot(page, "desktop-key")
    page.keyboard.type(service.api_key)  # the key form has the focus
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    tab_to("^Choose photos$")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([photo()])
    expect_scored(page)
    tab_to("^Copy the full SHA-256 hash$")
    tab_to("^Show .*score")
    page.keyboard.press("Space")
    expect(page.locator("#result")).to_be_focused()
    tab_to("^Delete ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    tab_to("^Delete ")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#history")).to_be_hidden()
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_a_screen_reader_hears_scoring_and_then_the_score(page: Page, service: Any) -> None:
    gate = Gate(page)
    sign_in(page, service)
    choose(page, photo("soup.jpg"))
    status = page.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    expect(status).to_have_text("Scoring…")
    expect(page.get_by_role("progressbar", name="Scoring soup.jpg")).to_be_visible()
    gate.open()
    expect_scored(page)
    expect(status).to_have_text(re.compile(rf"^Score [1-5] of 5, ({WORDS}): .+\. Tip: .+", re.IGNORECASE))


def test_landmarks_and_names_are_there(page: Page, service: Any) -> None:
    sign_in(page, service)
    for role in ("banner", "navigation", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("region", name="Result")).to_be_visible()
    expect(page.get_by_role("link", name="Docs")).to_have_attribute("href", "/docs")
    choose(page, photo())
    expect_scored(page)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, a, input:not([hidden])')].filter((node) => !(node.ariaLabel"
        " || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("context_options", [{"reduced_motion": "reduce"}])
def test_reduced_motion_is_respected(page: Page, service: Any) -> None:
    Gate(page)
    sign_in(page, service)
    choose(page, photo())
    expect(page.get_by_role("progressbar")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0


# --- how it is served -----------------------------------------------------------------------------


def test_the_page_and_its_files_come_with_the_policy(page: Page, service: Any) -> None:
    scripts = ("api", "app", "storage", "view", "words")
    for path, media_types in {
        "/": ["text/html"],
        "/static/style.css": ["text/css"],
        "/static/favicon.svg": ["image/svg+xml"],
        **{f"/static/{name}.js": ["text/javascript", "application/javascript"] for name in scripts},
    }.items():
        response = page.request.get(path)
        assert response.status == 200, path
        assert response.headers["content-type"].split(";")[0] in media_types, path
        assert response.headers["x-content-type-options"] == "nosniff", path
    assert page.request.get("/").headers["content-security-policy"] == CSP
