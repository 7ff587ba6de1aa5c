"""Encrypted archives as easy-dataset-share makes them, read in memory: the rows stay encrypted on the disk.

The format: 16 bytes of salt, then a Fernet token whose key is PBKDF2-HMAC-SHA256 of the passphrase (100,000 rounds,
32 bytes); inside is a zip. The package itself is not used: it needs cryptography below version 42 and unpacks members
wherever their names point.
"""

import base64
import hashlib
import io
import stat
import zipfile
from pathlib import PurePosixPath

from em_jax.base.errors import UserError

SALT = 16
ROUNDS = 100_000
MAX_BYTES = 1 << 27
"""A larger member is no set of rows."""


def member(data: bytes, passphrase: str, name: str, where: str) -> bytes:
    """The content of the one member whose last path part is `name`; UserErrors name the archive as `where`."""
    from cryptography.fernet import Fernet, InvalidToken

    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), data[:SALT], ROUNDS, dklen=32)
    try:
        zipped = Fernet(base64.urlsafe_b64encode(key)).decrypt(data[SALT:])
        with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
            for info in archive.infolist():
                _check_member(info, where)
            files = [info for info in archive.infolist() if not info.is_dir()]
            matches = [info for info in files if PurePosixPath(info.filename).name == name]
            if len(matches) != 1:
                names = ", ".join(sorted(info.filename for info in files)[:20])
                raise UserError(f"{where}: expected one file {name} in the archive, found {len(matches)} (of: {names})")
            with archive.open(matches[0]) as file:
                content = file.read(MAX_BYTES + 1)
    except InvalidToken:
        raise UserError(
            f"{where}: expected an archive of easy-dataset-share with the published passphrase, found a wrong "
            "passphrase or damaged content"
        ) from None
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds of exceptions for damaged content
        raise UserError(f"{where}: expected a zip archive inside, found damaged content ({error})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{where}: refused, {matches[0].filename!r} unpacks to more than {MAX_BYTES} bytes")
    return content


def _check_member(info: zipfile.ZipInfo, where: str) -> None:
    """Raises UserError where a member could reach outside its folder, or is a link."""
    parts = info.filename.replace("\\", "/").split("/")
    if not info.filename:
        raise UserError(f"{where}: refused, a member of the archive has no name")
    if not parts[0] or ".." in parts or ":" in parts[0]:
        raise UserError(f"{where}: refused, a member's path leads outside the archive: {info.filename!r}")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{where}: refused, a member is a link or a device: {info.filename!r}")
