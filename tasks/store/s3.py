"""An S3 bucket, or a server that speaks its protocol, as a trace store.

``AWS_ENDPOINT_URL``, credentials and region come from the environment and the AWS configuration as every AWS tool reads
them. Bodies carry a SHA-256 checksum, unless ``AWS_REQUEST_CHECKSUM_CALCULATION=when_required`` says that the server
does not take one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from srfa.errors import StoreError
from tasks.store.protocol import checked_key, checked_prefix

_CONFIG: Final = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    connect_timeout=5,
    read_timeout=60,
    user_agent_extra="srfa",
)
_ABSENT: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_BEATEN: Final = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_UNCONDITIONAL: Final = frozenset({"501", "NotImplemented", "400", "InvalidArgument", "InvalidRequest"})
_DENIED: Final = frozenset(
    {
        "403",
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)
_CREDENTIALS: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_GIVE_CREDENTIALS: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
_WEAK_MODE: Final = (
    "use a server that supports If-None-Match and If-Match, or add ?conditional_writes=off to accept weaker writes"
)


class S3Store:
    """Objects under ``s3://bucket/prefix``.

    Parameters
    ----------
    bucket, prefix
        Where the store lies; the prefix may be empty.
    conditional_writes
        True: write-once and pointers use ``If-None-Match`` and ``If-Match``, so of several writers exactly one wins.
        False (a server that refuses them): look first, then write. Two writers in the same instant can then both
        believe they won, and the later one's bytes stay: run one campaign at a time, and publish from one place.

    Notes
    -----
    A conditional write whose answer was lost and that is retried reports False although its own bytes are there:
    callers treat False as "somebody has written it", which is true.
    """

    def __init__(self, bucket: str, prefix: str = "", *, conditional_writes: bool = True) -> None:
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._conditional = conditional_writes
        self._connection: Any = None

    @property
    def uri(self) -> str:
        """The address with prefix and mode."""
        mode = "" if self._conditional else "?conditional_writes=off"
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/") + mode

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> bool:
        """Put one object; with ``if_absent`` under ``If-None-Match: *``."""
        if not if_absent:
            return self._put(key, data, {})
        if self._conditional:
            return self._put(key, data, {"IfNoneMatch": "*"})
        return not self.exists(key) and self._put(key, data, {})

    def get(self, key: str) -> bytes:
        """Get the object; its checksum is compared by the client library."""
        with self._told(key):
            body: bytes = self._client().get_object(**self._at(key))["Body"].read()
        return body

    def exists(self, key: str) -> bool:
        """Return whether the object is there."""
        return self.version(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys page by page, in the server's order, which is sorted."""
        full = self._prefix + checked_prefix(prefix)
        with self._told(prefix):
            for page in self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=full):
                yield from (entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", ()))

    def version(self, key: str) -> str | None:
        """Return the object's ETag, None where it is not there."""
        with self._told(key):
            try:
                etag: str = self._client().head_object(**self._at(key))["ETag"]
            except ClientError as error:
                if _codes(error) & _ABSENT:
                    return None
                raise
        return etag

    def replace(self, key: str, data: bytes, *, expected: str | None) -> bool:
        """Put under ``If-Match``, or ``If-None-Match: *`` where nothing is expected."""
        if expected is None:
            return self.put(key, data, if_absent=True)
        if self._conditional:
            return self._put(key, data, {"IfMatch": expected})
        return self.version(key) == expected and self._put(key, data, {})

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._told(key):
            self._client().delete_object(**self._at(key))

    def check(self) -> None:
        """List, write a probe, try to write it once more and with a wrong ETag, and delete it."""
        key = f"probe-{uuid.uuid4().hex}"
        next(self.list("probe-"), None)
        try:
            once = self.put(key, b"0", if_absent=True) and not self.put(key, b"1", if_absent=True)
            moved = self.replace(key, b"2", expected='"00000000000000000000000000000000"')
        finally:
            self.delete(key)
        if not once or moved:
            raise StoreError(f"{self.uri}: the server ignores conditional writes; {_WEAK_MODE}")

    def _client(self) -> Any:
        """Connect on first use: an address can be checked and shown without credentials."""
        if self._connection is None:
            self._connection = Session().client("s3", config=_CONFIG)
        return self._connection

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    def _put(self, key: str, data: bytes | Path, condition: dict[str, str]) -> bool:
        where = self._at(key)
        with self._told(key):
            try:
                _with_body(
                    data, lambda body: self._client().put_object(Body=body, **where, **condition, **self._checksum())
                )
            except ClientError as error:
                if condition and _codes(error) & (_BEATEN | _ABSENT):
                    return False
                if condition and _codes(error) & _UNCONDITIONAL:
                    raise StoreError(
                        f"{self.uri}: the server refuses conditional writes ({error}); {_WEAK_MODE}"
                    ) from error
                raise
        return True

    def _checksum(self) -> dict[str, str]:
        wanted = self._client().meta.config.request_checksum_calculation != "when_required"
        return {"ChecksumAlgorithm": "SHA256"} if wanted else {}

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what boto3 says into one sentence with a remedy."""
        try:
            yield
        except ClientError as error:
            raise StoreError(f"{self.uri}: {self._refused(key, error)}") from error
        except _CREDENTIALS as error:
            raise StoreError(f"{self.uri}: no usable credentials ({error}); {_GIVE_CREDENTIALS}") from error
        except (HTTPClientError, ConnectionError) as error:
            remedy = "check AWS_ENDPOINT_URL, the region and the network"
            raise StoreError(f"{self.uri}: the server cannot be reached ({error}); {remedy}") from error
        except (BotoCoreError, OSError, ValueError) as error:
            remedy = "check the AWS configuration and AWS_ENDPOINT_URL, and that a file to be stored exists"
            raise StoreError(f"{self.uri}: {key or 'the bucket'}: {error}; {remedy}") from error

    def _refused(self, key: str, error: ClientError) -> str:
        codes = _codes(error)
        if "NoSuchBucket" in codes:
            return f"bucket {self._bucket!r} does not exist; create it, or correct the store's address"
        if codes & _DENIED:
            return f"access is denied ({error}); the store lists, gets, puts and deletes; {_GIVE_CREDENTIALS}"
        if codes & _ABSENT:
            return f"{key} is not there; list the store to see what is"
        return f"{key}: the server refuses ({error}); see its log"


def _codes(error: ClientError) -> set[str]:
    """Return error code and HTTP status: a HEAD has only the latter, some servers know only one."""
    answer: Any = error.response
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return {str(answer.get("Error", {}).get("Code", "")), str(status)}


def _with_body(data: bytes | Path, send: Callable[[bytes | IO[bytes]], object]) -> None:
    if isinstance(data, bytes):
        send(data)
        return
    with data.open("rb") as body:
        send(body)
