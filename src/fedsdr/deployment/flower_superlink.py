"""Flower's SuperLink, closed to everyone except its operator (as of 1.42).

Flower's own answers control and runtime requests from anyone who holds the certificate of its authority, as
every client does: they could list and remove nodes, and submit code that runs under the SuperLink's account.
Here the control paths require a token, stored in the server's folder where only the operator's account can
read it and `flwr` looks for it. The runtime paths require a secret that only our executor has.
"""

import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, AuthnType
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.supercore.credential_store import CredentialStore, get_credential_store
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from fedsdr.deployment.executor import start_executor
from fedsdr.errors import UserError

GRACE = 5
"""Seconds for which connections stay open after the SuperLink is stopped."""


class OperatorOnly(ControlAuthnPlugin):
    """Accepts the operator's token, which `flwr` sends like an account token."""

    def __init__(self, token: str) -> None:
        self.token = token

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """Whether the token is the operator's, and the only account."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given, self.token.encode()):
            return False, None
        return True, AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        """There is no login: the token is in a file."""
        return None

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """There is no login: the token is in a file."""
        return None

    def refresh_tokens(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[Sequence[tuple[str, str | bytes]] | None, AccountInfo | None]:
        """The token does not expire."""
        return None, None


class Lifespan(SuperLinkLifespan):
    """Processes that start and stop with the SuperLink: our executor instead of Flower's."""

    def _start_superexec_if_needed(self) -> None:
        address, secret = f"{self.config.host}:{self.config.port}", self.config.superexec_auth_secret
        assert secret is not None
        assert self.config.ssl_ca_certfile is not None
        self.superexec_process = start_executor(address, Path(self.config.ssl_ca_certfile), secret)


def close(config: SuperLinkLifespanConfig, store: CredentialStore) -> None:
    """Require the operator's token for control, and a new secret for taking tasks.

    Args:
        config: Configuration of the SuperLink; it is modified.
        store: Place where `flwr` looks for tokens, readable only by the operator's account. An existing token
            stays valid.

    Raises:
        UserError: The SuperLink would run without TLS, or start programs itself.
    """
    if config.certificates is None or config.isolation != "process":
        raise UserError("the SuperLink needs TLS and --isolation process: start it by the server's start.sh")
    host = f"{config.host}:{config.port}"
    token = (store.get(ACCESS_TOKEN_STORE_KEY % host) or secrets.token_urlsafe(32).encode()).decode()
    for key, value in (
        (AUTHN_TYPE_STORE_KEY, AuthnType.OIDC),  # how `flwr` sends a token
        (ACCESS_TOKEN_STORE_KEY, token),
        (REFRESH_TOKEN_STORE_KEY, "none"),
    ):
        store.set(key % host, value.encode())
    config.authn_plugin = OperatorOnly(token)
    config.superexec_auth_secret = secrets.token_bytes(32)


def main() -> None:
    """Run a SuperLink by the arguments of `flower-superlink`; FLWR_HOME is in the server's folder."""
    config = _parse_superlink_lifespan_config()
    close(config, get_credential_store())
    uvicorn.run(
        create_app(config, Lifespan),
        host=config.host,
        port=config.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        # A run's process and its display keep connections open, and cannot end once the port is closed.
        timeout_graceful_shutdown=GRACE,
    )


if __name__ == "__main__":
    main()
