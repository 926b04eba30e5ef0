"""``fooddx tenant``: who may call, done on the store itself and not through the service."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.errors import ResultsUnavailable
from app.model_commands import CommandError
from app.settings import Settings, load_settings
from app.stores.connection import check_server
from app.stores.embedded import EmbeddedStore, EmbeddedStoreError
from app.stores.tenants import TenantAdmin, TenantError
from app.tenants.access import REFRESH_EVERY_S
from app.tenants.tenants import DEFAULT_TENANT, Limits, Tenant

OUT = Console(soft_wrap=True, highlight=False)


def add_tenant_commands(commands: Any) -> None:
    """``fooddx tenant add|set|rotate|limit|disable|enable|list``."""
    tenant = commands.add_parser("tenant", help="who may call, and how often")
    kinds = tenant.add_subparsers(required=True, metavar="COMMAND")

    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--per-second", type=float, metavar="N", help="requests a second (default: no limit)")
    limits.add_argument("--per-day", type=int, metavar="N", help="requests a day, UTC (default: no limit)")
    uses = argparse.ArgumentParser(add_help=False)
    uses.add_argument(
        "--store",
        metavar="URL",
        help="s3://bucket/prefix for its photos (default: where everybody's are); those stored before stay "
        "where they are",
    )
    uses.add_argument(
        "--models", metavar="A,B", help="that judge its photos, see `model list` (default: those that serve)"
    )
    uses.add_argument("--webhook", metavar="URL", help="https, told of results nobody waits for")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("tenant", metavar="TENANT", help="lower-case letters, digits and -")

    add = kinds.add_parser("add", parents=[one, limits, uses], help="a new tenant; prints its API key, once")
    add.set_defaults(command=_add)
    change = kinds.add_parser("set", parents=[one, uses], help='change what is given; "" clears it')
    change.set_defaults(command=_set)
    rotate = kinds.add_parser("rotate", parents=[one], help="a new API key beside the old one")
    rotate.add_argument(
        "--overlap-days", type=float, default=7, metavar="N", help="how long both are valid (default 7)"
    )
    rotate.set_defaults(command=_rotate)
    limit = kinds.add_parser("limit", parents=[one, limits], help="replace the limits")
    limit.set_defaults(command=_limit)
    for name, words in (("disable", "refuse its keys; photos and results stay"), ("enable", "take it back")):
        kinds.add_parser(name, parents=[one], help=words).set_defaults(
            command=_disable, disabled=name == "disable"
        )
    kinds.add_parser("list", help="the tenants, without their keys").set_defaults(command=_list)


@contextmanager
def tenant_admin() -> Iterator[TenantAdmin]:
    """The tenants in the store of the settings; an embedded one is started where no service runs it."""
    settings = load_settings()
    try:
        with _store(settings) as url, TenantAdmin(url) as admin:
            yield admin
    except (TenantError, EmbeddedStoreError, ResultsUnavailable) as error:
        raise CommandError(str(error)) from None


@contextmanager
def _store(settings: Settings) -> Iterator[str]:
    if settings.redis_url:
        yield settings.redis_url.get_secret_value()
        return
    settings.make_data_dir()
    store = EmbeddedStore(settings.data_dir / "valkey")
    try:
        check_server(store.url)
    except redis.RedisError:  # no service runs it
        with store:
            yield store.url
    else:
        yield store.url


def _limits_of(options: argparse.Namespace) -> Limits:
    try:
        return Limits(per_second=options.per_second, per_day=options.per_day)
    except ValidationError as error:
        raise unusable(error) from None


def unusable(error: ValidationError) -> CommandError:
    """Which fields are wrong in which way; what was given is not quoted."""
    return CommandError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))


def _add(options: argparse.Namespace) -> int:
    if options.tenant == DEFAULT_TENANT:
        raise CommandError(f"{DEFAULT_TENANT} is whoever holds the key of the first start: choose another")
    now, uses = datetime.now(UTC), _uses_of(options)
    try:
        empty = Tenant(id=options.tenant, limits=_limits_of(options), made_at=now, **uses)
    except ValidationError as error:
        raise unusable(error) from None
    tenant, api_key = empty.with_new_key(now, timedelta())
    with tenant_admin() as admin:
        admin.add(tenant)
    _show_key(tenant, api_key)
    return 0


def _uses_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a tenant that were given, each checked."""
    uses: dict[str, Any] = {}
    try:
        if options.store is not None:
            uses["store"] = options.store and _bucket_url(options.store)
        if options.models is not None:
            uses["models"] = _model_refs(options.models)
        if options.webhook is not None:
            uses["webhook"] = options.webhook and _webhook_url(options.webhook)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return uses


def _bucket_url(location: str) -> str:
    from app.stores.s3 import Bucket  # noqa: PLC0415 - the other commands start faster

    bucket = Bucket.at(location, environ={})
    return f"{bucket}/{bucket.prefix}".rstrip("/")


def _model_refs(text: str) -> tuple[str, ...]:
    from models.manifest import load_manifest  # noqa: PLC0415

    refs = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if len(set(refs)) != len(refs) or not all(refs):
        raise CommandError("name each model once, and none between two commas")
    registry = load_settings().registry_dir
    for ref in refs:
        load_manifest(ref, registry)
    return refs


def _webhook_url(url: str) -> str:
    from app.notices.targets import check_webhook  # noqa: PLC0415

    return check_webhook(url)


def _set(options: argparse.Namespace) -> int:
    uses = _uses_of(options)
    if not uses:
        raise CommandError("say what to change: --store, --models or --webhook")
    with tenant_admin() as admin:
        admin.change(options.tenant, lambda tenant: tenant.model_copy(update=uses))
    OUT.print(f"[green]✓[/] {options.tenant}: {', '.join(uses)} changed, {_soon()}.")
    if "store" in uses:
        OUT.print("Photos are looked for in the new store from now on: copy those it has, if there are any.")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    now, overlap = datetime.now(UTC), timedelta(days=options.overlap_days)
    if overlap < timedelta():
        raise CommandError("--overlap-days must be 0 or more")
    made: list[str] = []

    def renew(tenant: Tenant) -> Tenant:
        renewed, api_key = tenant.with_new_key(now, overlap)
        made[:] = [api_key]
        return renewed

    with tenant_admin() as admin:
        tenant = admin.change(options.tenant, renew)
    _show_key(tenant, made[0])
    OUT.print(f"The key before is valid until {now + overlap:%Y-%m-%d %H:%M} UTC.")
    return 0


def _show_key(tenant: Tenant, api_key: str) -> None:
    OUT.print(f"API key of {tenant.id}, which nobody can show again:")
    OUT.print(api_key, style="bold")


def _limit(options: argparse.Namespace) -> int:
    limits = _limits_of(options)
    with tenant_admin() as admin:
        admin.change(options.tenant, lambda tenant: tenant.model_copy(update={"limits": limits}))
    OUT.print(f"[green]✓[/] {options.tenant}: {_words(limits)}, {_soon()}.")
    return 0


def _disable(options: argparse.Namespace) -> int:
    with tenant_admin() as admin:
        admin.change(options.tenant, lambda tenant: tenant.model_copy(update={"disabled": options.disabled}))
    OUT.print(f"[green]✓[/] {options.tenant} is {'disabled' if options.disabled else 'enabled'}, {_soon()}.")
    return 0


def _soon() -> str:
    return f"within {REFRESH_EVERY_S:.0f} s where a service runs"


def _words(limits: Limits) -> str:
    told = [
        f"{value:g} a {period}"
        for value, period in ((limits.per_second, "second"), (limits.per_day, "day"))
        if value is not None
    ]
    return " and ".join(told) or "no limit"


def _list(_: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    columns = ("tenant", "state", "keys", "limits", "store", "models", "webhook", "credentials", "since")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")  # a terminal too narrow for all still shows all
    with tenant_admin() as admin:
        for tenant in admin.all():
            row = (
                tenant.id,
                "disabled" if tenant.disabled else "enabled",
                ", ".join(f"{key.sha256[:8]}…" for key in tenant.valid_keys(now)),
                _words(tenant.limits),
                tenant.store,
                ", ".join(tenant.models),
                urlsplit(tenant.webhook).hostname or "",
                "sealed" if tenant.credentials else "",
                f"{tenant.made_at:%Y-%m-%d}",
            )
            table.add_row(*(escape(cell) or "–" for cell in row))
    OUT.print(table)
    return 0
