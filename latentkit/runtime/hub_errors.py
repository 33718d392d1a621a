"""Explains errors of the Hugging Face hub, each with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from huggingface_hub import constants, errors, get_token

from latentkit.runtime.hub_places import HubPlace

HUB_ERRORS: tuple[type[Exception], ...] = (
    *(
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
    ),  # raised where the server is no hub
    errors.HTTPError,  # type: ignore[attr-defined]  # of the client, which has changed over the years, but not this name
    getattr(errors, "RevisionResolutionError", OSError),
)
"""What the hub's library may raise: the place doesn't exist, the hub can't be reached, or the
server isn't a hub.
"""

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    errors.FileMetadataError,
)


def explain_hub_error(
    error: Exception, place: HubPlace, access: Literal["read", "write"] = "read"
) -> str:
    """Return why a place on the hub can't be read or written, and what to do: a text that follows
    "model NAME: ".
    """
    for cause in list_causes(error):
        for text in (
            _explain_refusal(cause, place),
            _explain_status(cause, place, access),
            _explain_unreachable(cause, place),
        ):
            if text is not None:
                return text
    verb = {"read": "read from", "write": "written to"}[access]
    return f"it can't be {verb} {constants.ENDPOINT}: {_describe_error(error)}"


def hub_page_url(place: HubPlace) -> str:
    """Return the address of a repository's page."""
    folder = {"dataset": "datasets/", "space": "spaces/"}.get(place.kind, "")
    return f"{constants.ENDPOINT}/{folder}{place.repository}"


def _explain_refusal(error: BaseException, place: HubPlace) -> str | None:
    """Explain what the hub says about the repository itself; None if nothing."""
    what, page = place.kind, hub_page_url(place)
    if isinstance(error, errors.GatedRepoError):
        if not get_token():
            return (
                f"{place.repository} is gated: accept its terms at {page}, then log in with `hf"
                " auth login`, or set HF_TOKEN"
            )
        return (
            f"{place.repository} is gated, and the account of your token has no"
            f" access{_server_message(error)}: accept its terms at {page} with that account, and"
            " allow a fine-grained token to read gated repositories"
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"the hub has disabled {place.repository}; see {page}, and choose another {what}"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{place.repository} has no revision {place.revision or 'main'!r}; branches and tags:"
            f" {page}/branches"
        )
    if isinstance(error, errors.RepositoryNotFoundError) and not _is_token_refused(error):
        log_in = "for a private one log in with `hf auth login`, or set HF_TOKEN"
        advice = "your token has no access to a private one" if get_token() else log_in
        return (
            f"the hub has no {what} of that name ({place.repository}). Check the spelling; {advice}"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{place.repository!r} is not a hub id, which has the form owner/name"
    return None


def _explain_status(error: BaseException, place: HubPlace, access: str) -> str | None:
    """Explain an HTTP status, if the hub says nothing more exact; None if there is none."""
    status = _status(error)
    if status == 401:
        return (
            "the hub refuses your token: it is mistyped, expired or revoked; log in with `hf auth"
            " login`, or set another HF_TOKEN"
        )
    if status == 403:
        return (
            f"the hub forbids it{_server_message(error)}: your token may not {access}"
            f" {place.repository};"
            f" give a fine-grained token {access} access to it at"
            " https://huggingface.co/settings/tokens, or use another token"
        )
    if status in (409, 412) and access == "write":
        return "it was changed on the hub meanwhile; run again, which uploads what is left"
    if status == 429:
        wait = _header(error, "Retry-After")
        found = re.search(r"Retry after (\d+) seconds", str(error))
        seconds = wait if wait.isdecimal() else found[1] if found else ""
        when = f"in {seconds} seconds" if seconds else "in a few minutes"
        return (
            f"the hub's limit of requests is reached (429): run again {when}. With `hf auth login`"
            " or HF_TOKEN the limit is higher"
        )
    if status is not None and status >= 500:
        return (
            f"the hub has an internal error ({status} from {constants.ENDPOINT}): run again later."
            " See https://status.huggingface.co"
        )
    if status is not None and status >= 400:
        return f"the hub answers {status}{_server_message(error)} for {place}"
    return None


def _explain_unreachable(error: BaseException, place: HubPlace) -> str | None:
    """Explain why the hub can't be reached, or that the server isn't a hub; None for other
    errors.
    """
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        revision = f", revision {place.revision}," if place.revision else ""
        return (
            f"HF_HUB_OFFLINE is set, and {place.repository}{revision} is missing or incomplete in"
            f" the cache {constants.HF_HUB_CACHE}: unset it once, or run `hf download"
            f" {_hub_arguments(place)}` with a network"
        )
    names = " ".join(parent.__name__ for parent in type(error).__mro__)
    mirror = " and HF_ENDPOINT" if constants.ENDPOINT != "https://huggingface.co" else ""
    if re.search(
        "Connect|Timeout|NetworkError|ProtocolError|TransportError|ProxyError|SSLError", names
    ):
        return (
            f"{constants.ENDPOINT} can't be reached ({_describe_error(error)}): check the"
            f" network{mirror}, or give the path of a downloaded folder"
        )
    if isinstance(error, UNREADABLE):
        return (
            f"the server at {constants.ENDPOINT} is not the hub ({_describe_error(error)}): check"
            f" proxy and firewall{mirror}"
        )
    return None


def _hub_arguments(place: HubPlace) -> str:
    """Return the place as arguments of `hf download`."""
    revision = f" --revision {place.revision}" if place.revision else ""
    return (
        f"{place.repository}{' --repo-type dataset' if place.kind == 'dataset' else ''}{revision}"
    )


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, including hidden ones."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _header(error: BaseException, name: str) -> str:
    response: Any = getattr(error, "response", None)
    return str(getattr(response, "headers", {}).get(name) or "")


def _is_token_refused(error: BaseException) -> bool:
    return _status(error) == 401 and _header(error, "X-Error-Message").startswith(
        "Invalid credentials"
    )


def _server_message(error: BaseException) -> str:
    """Return the hub's own message, in brackets."""
    words = " ".join(
        (
            _header(error, "X-Error-Message") or str(getattr(error, "server_message", None) or "")
        ).split()
    )
    return f' ("{words[:200]}")' if words else ""


def _describe_error(error: BaseException) -> str:
    """Return the error's class and the first line of its text."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:200]}" if line else type(error).__name__
