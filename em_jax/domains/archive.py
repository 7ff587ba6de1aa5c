"""Encrypted archives as easy-dataset-share makes them, read in memory: what was locked stays locked on the disk.

The format: 16 bytes of salt, then a Fernet token whose key is PBKDF2-HMAC-SHA256 of the passphrase (100,000 rounds,
32 bytes); inside is a zip. The package itself is not used: it holds cryptography below version 42 and unpacks members
wherever their names point.
"""

import base64
import hashlib
import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from em_jax.base.errors import UserError

SALT = 16
ROUNDS = 100_000
# A member larger than this is no set of rows.
LARGEST = 1 << 27


def member(data: bytes, passphrase: str, name: str, where: str) -> bytes:
    """The content of the one member whose last path part is `name`; `where` names the archive in messages.

    Raises:
      UserError: a wrong passphrase or damaged content, an archive with unsafe members, or no such member.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(decrypted(data, passphrase, where))) as archive:
            files = list(_checked(archive, where))
            found = [info for info in files if PurePosixPath(info.filename).name == name]
            if len(found) != 1:
                names = ", ".join(sorted(info.filename for info in files)[:20])
                raise UserError(f"{where}: expected one file {name} in the archive, found {len(found)} (of: {names})")
            content = _read(archive, found[0], where)
    except UserError:
        raise
    except Exception as error:  # zipfile raises what damaged content makes it
        raise UserError(f"{where}: expected a zip archive inside, found damaged content ({error})") from None
    return content


def decrypted(data: bytes, passphrase: str, where: str) -> bytes:
    """The zip inside. UserError for a wrong passphrase, or content that is no such archive."""
    from cryptography.fernet import Fernet, InvalidToken

    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), data[:SALT], ROUNDS, dklen=32)
    try:
        return Fernet(base64.urlsafe_b64encode(key)).decrypt(data[SALT:])
    except InvalidToken:
        raise UserError(
            f"{where}: expected an archive of easy-dataset-share with the published passphrase, found a wrong "
            "passphrase or damaged content"
        ) from None


def _checked(archive: zipfile.ZipFile, where: str) -> Iterator[zipfile.ZipInfo]:
    """The members that are files. UserError where any member could reach outside a folder, or is a link."""
    for info in archive.infolist():
        parts = info.filename.replace("\\", "/").split("/")
        mode = info.external_attr >> 16
        if not info.filename:
            raise UserError(f"{where}: refused, a member of the archive has no name")
        if info.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise UserError(f"{where}: refused, a member's path leads outside the archive: {info.filename!r}")
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{where}: refused, a member is a link or a device: {info.filename!r}")
        if not info.is_dir():
            yield info


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    with archive.open(info) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{where}: refused, {info.filename!r} unpacks to more than {LARGEST} bytes")
    return content
