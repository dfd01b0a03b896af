"""One object of S3 as a stream into a file: what broke off is asked for again from where it broke off."""

import logging
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TRIES = 5  # in a row without a byte
WAIT = 2.0  # seconds before the second try, doubled from try to try


def download(client: Any, bucket: str, key: str, to: Path) -> None:
    """Write the object to `to`; a file that is there is taken for its beginning.

    Raises boto's errors: at once when the server refuses, after TRIES tries without a byte when it breaks off.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    failed = 0
    while True:
        have = to.stat().st_size if to.exists() else 0
        try:
            if _append(client, bucket, key, to, have):
                return
            error: Exception = HTTPClientError(error="the connection ended early")
        except ClientError as refused:
            if refused.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 416:
                raise
            # Nothing lies behind what is here. Whether it is the object, its md5 says; longer than it, it is not.
            if have == client.head_object(Bucket=bucket, Key=key)["ContentLength"]:
                return
            to.unlink()
            continue
        except (BotoCoreError, OSError) as broken:
            error = broken
        more = to.stat().st_size if to.exists() else 0
        failed = 0 if more > have else failed + 1
        if failed == TRIES:
            raise error
        logger.warning("s3://%s/%s broke off after %d bytes (%s); going on from there", bucket, key, more, error)
        time.sleep(WAIT * 2**failed if failed else 0)


def _append(client: Any, bucket: str, key: str, to: Path, have: int) -> bool:
    """Append what the server sends behind the first `have` bytes; whether the file is then as long as the object."""
    answer = client.get_object(Bucket=bucket, Key=key, **({"Range": f"bytes={have}-"} if have else {}))
    if have and "ContentRange" not in answer:  # the server does not know ranges and begins anew
        have = 0
    size = have + int(answer["ContentLength"])
    with to.open("ab" if have else "wb") as file:
        for block in answer["Body"].iter_chunks(CHUNK):
            file.write(block)
    return to.stat().st_size == size
