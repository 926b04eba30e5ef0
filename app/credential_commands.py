"""``fooddx credentials``: seal a tenant's credentials, wrap them anew, try whether they open its store."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from app.errors import ImagesUnavailable
from app.model_commands import CommandError
from app.settings import Settings, load_settings
from app.tenant_commands import tenant_admin, unusable
from app.tenants.tenants import Tenant

if TYPE_CHECKING:
    from app.stores.s3 import S3Credentials
    from app.stores.tenants import TenantAdmin
    from app.tenants.envelope import CredentialsError
    from app.tenants.kms import KeyService

# What loads cryptography or obstore is imported where it is needed: the other commands start faster.
# ruff: noqa: PLC0415

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

_PATIENCE_S = 10.0  # that a store may take here: it is asked whether it lets us in, not whether it is fast

_REMEDIES = {
    "unknown_version": "a later version sealed them, so update this one",
    "damaged": "encrypt them anew",
    "wrong_tenant": "another tenant's, or sealed under another key service: encrypt them anew",
    "keys_denied": "the key that wraps them is not in the key file, or KMS does not let you use it",
    "keys_unavailable": "the key file is not there or unreadable, or KMS does not answer: look at "
    "FOODDX_DATA_DIR, FOODDX_CREDENTIAL_KEY and AWS's own variables",
}


def add_credential_commands(commands: Any) -> None:
    """``fooddx credentials encrypt|rotate|check|remove``."""
    group = commands.add_parser("credentials", help="what opens a tenant's own store, sealed")
    kinds = group.add_subparsers(required=True, metavar="COMMAND")

    sealing = kinds.add_parser(
        "encrypt", help="seal credentials, a JSON object of strings, in the place of those before"
    )
    sealing.add_argument("tenant", metavar="TENANT")
    # Not from an argument: every user of the machine can see those of a running program.
    sealing.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="the JSON (default: standard input)"
    )
    sealing.add_argument("--print", action="store_true", help="print the envelope instead of storing it")
    sealing.set_defaults(command=_encrypt)

    rotating = kinds.add_parser("rotate", help="wrap the data keys anew; the key file gets a new key first")
    rotating.add_argument("tenants", metavar="TENANT", nargs="*", help="default: all who have credentials")
    rotating.add_argument("--reseal", action="store_true", help="take fresh data keys too")
    rotating.set_defaults(command=_rotate)

    checking = kinds.add_parser("check", help="open them, and try the tenant's own store")
    checking.add_argument("tenant", metavar="TENANT")
    checking.set_defaults(command=_check)

    removing = kinds.add_parser("remove", help="forget them")
    removing.add_argument("tenant", metavar="TENANT")
    removing.set_defaults(command=_remove)


def _keys(settings: Settings) -> KeyService:
    from app.tenants.kms import key_service

    try:
        return key_service(settings.credential_key, settings.data_dir)
    except (ValueError, OSError) as error:
        raise CommandError(f"KMS cannot be used: {error}") from None


def _said(error: CredentialsError) -> str:
    return f"{error.text} ({error.code}): {_REMEDIES[error.code]}"


def _encrypt(options: argparse.Namespace) -> int:
    from app.tenants.credentials import encrypt
    from app.tenants.envelope import CredentialsError

    keys = _keys(load_settings())
    credentials = _read(options.file)

    def sealed(tenant: str) -> str:
        try:
            return encrypt(credentials, tenant, keys)
        except CredentialsError as error:
            raise CommandError(_said(error)) from None
        except ValueError as error:
            raise CommandError(str(error)) from None

    if options.print:
        OUT.print(sealed(options.tenant), markup=False)
        return 0
    with tenant_admin() as admin:
        admin.change(options.tenant, lambda one: one.model_copy(update={"credentials": sealed(one.id)}))
    OUT.print(f"[green]✓[/] {options.tenant}: {', '.join(sorted(credentials))} sealed.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    with tenant_admin() as admin:
        admin.change(options.tenant, lambda one: one.model_copy(update={"credentials": ""}))
    OUT.print(f"[green]✓[/] {options.tenant} has no credentials any more.")
    return 0


def _read(file: Path | None) -> dict[str, str]:
    """The credentials, of known names only. No error quotes a value."""
    if file is None and sys.stdin.isatty():
        ERR.print("The credentials as JSON, then Ctrl-D:")
    try:
        credentials = json.loads(file.read_bytes() if file else sys.stdin.buffer.read())
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None
    except ValueError:
        raise CommandError("the credentials are not JSON") from None
    if not isinstance(credentials, dict) or not all(isinstance(value, str) for value in credentials.values()):
        raise CommandError("the credentials are not a JSON object of strings")
    _checked(credentials)
    return credentials


def _checked(credentials: Mapping[str, str]) -> S3Credentials | None:
    """Those of the store; None where there are none.

    Raises:
        CommandError: a name is not known, or they can be no store's or no webhook's.
    """
    from app.notices.webhook import WEBHOOK_SECRET, signing_key
    from app.stores.s3 import S3Credentials

    known = {*S3Credentials.model_fields, WEBHOOK_SECRET}
    if unknown := credentials.keys() - known:
        raise CommandError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    own = {name: value for name, value in credentials.items() if name != WEBHOOK_SECRET}
    try:
        if WEBHOOK_SECRET in credentials:
            signing_key(credentials[WEBHOOK_SECRET])
        return S3Credentials.model_validate(own) if own else None
    except ValidationError as error:
        raise unusable(error) from None
    except ValueError as error:
        raise CommandError(str(error)) from None


def _rotate(options: argparse.Namespace) -> int:
    settings = load_settings()
    keys = _keys(settings)
    with tenant_admin() as admin:
        have = {tenant.id for tenant in admin.all() if tenant.credentials}
        tenants = list(dict.fromkeys(options.tenants)) or sorted(have)
        if missing := [name for name in tenants if name not in have]:
            raise CommandError(f"no credentials are stored for {', '.join(missing)}")
        if not tenants:
            OUT.print("No tenant has credentials.")
            return 0
        _new_wrapping_key(keys, settings)
        failures = [words for name in tenants if (words := _rotate_one(admin, name, keys, options.reseal))]
    if failures:
        raise CommandError("\n".join(failures))
    return 0


def _new_wrapping_key(keys: KeyService, settings: Settings) -> None:
    """The key file gets another line; in KMS that is KMS's affair."""
    from app.tenants.envelope import CredentialsError
    from app.tenants.kms import KEY_FILE, LocalKeys

    if not isinstance(keys, LocalKeys):
        return
    if not (settings.data_dir / KEY_FILE).exists():  # a new one would hide that what opens them is lost
        raise CommandError(f"{settings.data_dir / KEY_FILE} is not there: put it back, or encrypt anew")
    try:
        keys.add_key()
    except CredentialsError as error:
        raise CommandError(_said(error)) from None


def _rotate_one(admin: TenantAdmin, name: str, keys: KeyService, reseal: bool) -> str:
    """What went wrong, or "". The others go on: whoever is done is done, and may be done again."""
    from app.tenants import credentials
    from app.tenants.envelope import CredentialsError

    renew = credentials.reseal if reseal else credentials.rotate

    def renewed(tenant: Tenant) -> Tenant:
        # Made of the record that it replaces: one that changes meanwhile is read, and renewed, again.
        if not tenant.credentials:
            return tenant
        return tenant.model_copy(update={"credentials": renew(tenant.credentials, name, keys)})

    try:
        admin.change(name, renewed)
    except CredentialsError as error:
        return f"{name}: {_said(error)}"
    OUT.print(f"[green]✓[/] {name}: {'resealed' if reseal else 're-wrapped'}.")
    return ""


def _check(options: argparse.Namespace) -> int:
    from app.notices.webhook import WEBHOOK_SECRET

    with tenant_admin() as admin:
        tenant = next((one for one in admin.all() if one.id == options.tenant), None)
    if tenant is None:
        raise CommandError(f"there is no tenant {options.tenant}")
    if not tenant.credentials and not tenant.store:
        raise CommandError(f"{tenant.id} has neither credentials nor a store of its own")
    found = _opened(tenant)
    own = _checked(found)
    if found:
        OUT.print(f"[green]✓[/] {tenant.id}: {', '.join(sorted(found))} can be opened.")
    if tenant.store:
        if own is None:
            OUT.print("No credentials for its store: those that AWS's own chain finds here are tried.")
        _try_store(tenant.store, own)
        OUT.print(f"[green]✓[/] {escape(tenant.store)} takes photos.")
    if tenant.webhook and WEBHOOK_SECRET not in found:
        raise CommandError(f"its webhook is told nothing: there is no {WEBHOOK_SECRET} to sign with")
    return 0


def _opened(tenant: Tenant) -> dict[str, str]:
    from app.tenants.credentials import decrypt
    from app.tenants.envelope import CredentialsError

    if not tenant.credentials:
        return {}
    try:
        return decrypt(tenant.credentials, tenant.id, _keys(load_settings()))
    except CredentialsError as error:
        raise CommandError(_said(error)) from None


def _try_store(location: str, credentials: S3Credentials | None) -> None:
    from app.stores.s3 import Bucket, S3Images, S3Limits

    limits = S3Limits(connect_s=_PATIENCE_S / 3, attempt_s=_PATIENCE_S / 2, total_s=_PATIENCE_S)
    try:
        asyncio.run(S3Images(Bucket.at(location, credentials), credentials, limits).ping())
    except ImagesUnavailable as error:
        raise CommandError(error.detail) from None
    except ValueError as error:
        raise CommandError(f"{location}: {error}") from None
