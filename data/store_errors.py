"""Why an object store refuses a request, and what to do about it.

The answer to a HEAD request has no body, and libraries show no more than its status: "Bad Request" of a token that has
expired. Asked for a listing, the store says what it means.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

Answer = TypeVar("Answer")

_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "InvalidClientTokenId")
_CLOCK = ("RequestTimeTooSkewed", "RequestInTheFuture")
_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "401", "403")
_BUSY = ("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "429", "503")
NO_BUCKET = "NoSuchBucket"
_ON_ITS_WAY = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch")
"""What was sent is not what arrived."""
_BARE = ("301", "307", "400", "401", "403")
"""Statuses that have several reasons."""

_FIXES = {
    _EXPIRED: "renew the credentials (aws sso login, or new AWS_* variables)",
    _KEYS: "check the credentials: AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    _CLOCK: "set this machine's clock",
    _DENIED: "let the credentials list the bucket, and read, write and delete below this address",
    _BUSY: "wait, or use fewer workers",
    _ON_ITS_WAY: "check the network and its proxies: something there changes what is sent",
    (NO_BUCKET,): "check the address, or make the bucket",
}
_OTHERWISE = "check the address, the credentials and the network"


class Refusal(NamedTuple):
    """What a store answered."""

    code: str
    """The store's own name for it, or the HTTP status; "" where none is known."""
    reason: str
    """In one line."""
    region: str | None = None
    """Where the bucket is, if the answer says so."""

    @property
    def fix(self) -> str:
        """What to do."""
        if self.code in _REGION:
            region = self.region or "REGION"
            return f"set AWS_DEFAULT_REGION={region}, and AWS_ENDPOINT_URL, where it is set, to an address there"
        return next((fix for codes, fix in _FIXES.items() if self.code in codes), _OTHERWISE)

    @property
    def will_pass(self) -> bool:
        """Whether asking again may help."""
        lasting = (*_REGION, *_EXPIRED, *_KEYS, *_CLOCK, *_DENIED, NO_BUCKET)
        return self.code not in lasting


def refusal(error: BaseException, listing: Callable[[], object] | None = None) -> Refusal:
    """What the store said.

    Args:
        error: what its library raised.
        listing: lists the address, to be called where `error` says no more than a status.
    """
    found = _answer(error)
    if found.code in _BARE and listing is not None:
        try:
            listing()
        except Exception as other:
            better = _answer(other)
            if better.code and not better.code.isdigit():
                return better
    return found


def _answer(error: BaseException) -> Refusal:
    if isinstance(error, RecursionError):  # botocore follows a redirection that names no region without end
        return Refusal("PermanentRedirect", "the bucket is in another region")
    for each in _causes(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return _of_response(response)
    text = getattr(error, "strerror", None) or str(error)
    code = _ON_ITS_WAY[0] if any(map(_is_of_checksum, _causes(error))) else ""
    return Refusal(code, (str(text).strip().splitlines() or [type(error).__name__])[0])


def _is_of_checksum(error: BaseException) -> bool:
    """Whether a library compared a checksum: botocore's FlexibleChecksumError, gcsfs's ChecksumError."""
    return "Checksum" in type(error).__name__


def arrived(read: Callable[[], Answer]) -> Answer:
    """What `read` returns; it is done again where a checksum says that something was damaged on its way."""
    try:
        return read()
    except Exception as error:
        if not any(map(_is_of_checksum, _causes(error))):
            raise
        return read()


def _of_response(response: dict[str, Any]) -> Refusal:
    """Of botocore's form."""
    about = response["Error"]
    code, message = str(about.get("Code") or ""), str(about.get("Message") or "").strip()
    headers = (response.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
    expected = re.search(r"expecting '([\w-]+)'", message)
    region = headers.get("x-amz-bucket-region") or about.get("Region") or (expected[1] if expected else None)
    if code in _REGION:
        return Refusal(code, f"the bucket is in {f'the region {region}' if region else 'another region'}", region)
    reason = (message.splitlines() or [code])[0].rstrip(".")
    return Refusal(code, reason, region)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def has_no_bucket(error: BaseException) -> bool:
    """Whether a file is missing since its bucket is."""
    with suppress(Exception):
        return _answer(error).code == NO_BUCKET
    return False
