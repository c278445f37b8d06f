"""Addresses as text: local paths, and URIs whose query says how to reach the storage.

``s3://bucket/folder?region=us-east-1&endpoint_override=http://minio:9000`` is a folder in a bucket. What is inside the
folder has the same query after its own path. Nothing here opens a file; `raygan.runtime.storage` does.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import urllib.parse
from typing import Any

#: A query. A question mark that isn't followed by a name and an equals sign belongs to a glob.
_QUERY = re.compile(r"\?\w+=.*$", re.DOTALL)

#: An address's user and password. The password may contain delimiters; digits up to the path are a port.
_USER = re.compile(r"://([^/@:?#]*)(?::(?!\d+(?:[/?#]|$))([^@]*(?:@[^/?#@]*(?=@))*))?@")

#: Query parameters whose values are secrets.
_SECRETS = re.compile(r"(?<=[?&])(\w*(?:secret|password|token|access_key|account_key)\w*|sig)=([^&]+)", re.IGNORECASE)

#: The parts of what looks like a URI of a kind that pyarrow opens, or of a web page.
_SCHEME = re.compile(r"(?P<scheme>s3|gs|gcs|abfss?|hdfs|file|https?):(?P<slashes>/{0,2})(?P<place>[^/?#]*)")

_SQLITE = "sqlite:///"


def well_formed(address: str) -> str:
    """The address as it is. Raises ValueError for one that would be taken for a path but can't be meant as one."""
    if not address.strip():
        raise ValueError("must not be empty, as an unset variable of the shell is; a dot is this folder")
    if "\0" in address:
        raise ValueError("must not contain a null character")
    if address.partition("/")[0] == "~" == os.path.expanduser(address).partition("/")[0]:
        raise ValueError("must not begin with ~ where there is no home: set HOME, or give an absolute path")
    found = _SCHEME.match(address)
    if found and len(found["slashes"]) < 2:
        raise ValueError(f"must begin with {found['scheme']}://, or with ./ if it is a path")
    if found and found["scheme"] == "file" and found["place"] not in ("", "localhost"):
        raise ValueError("must have an absolute path after file://, such as file:///data")
    if found and found["scheme"] != "file" and not found["place"]:
        raise ValueError(f"must name a bucket or a host after {found['scheme']}://")
    return address


def is_remote(address: str) -> bool:
    """Whether the address is a URI."""
    return "://" in address


def split_query(address: str) -> tuple[str, str]:
    """The address without its query, and the query with its question mark, or "" if there is none."""
    found = _QUERY.search(address) if is_remote(address) else None
    return (address[: found.start()], found.group()) if found else (address, "")


def join(address: str, *parts: str) -> str:
    """The address of something inside the folder `address`."""
    place, query = split_query(address)
    return posixpath.join(place, *parts) + query


def parent(address: str) -> str:
    """The address of the folder that contains `address`."""
    place, query = split_query(address)
    return posixpath.dirname(place.rstrip("/")) + query


def name(address: str) -> str:
    """The last part of an address's path."""
    return posixpath.basename(split_query(address)[0].rstrip("/"))


def absolute(address: str) -> str:
    """The address; a local one as an absolute path."""
    if address.startswith("file://"):
        return urllib.parse.unquote(urllib.parse.urlsplit(address).path)
    return address if is_remote(address) else os.path.abspath(os.path.expanduser(address))


def slug(text: str, most: int = 100, *, ascii_only: bool = False) -> str:
    """Text as a part of a name: of a file, a run, a registered model.

    Letters and digits of any script, ``.``, ``_`` and ``-`` stay. If anything else is dropped, a digest is added.

    Args:
        text: not empty.
        most: UTF-8 bytes of the result.
        ascii_only: letters of other scripts are dropped, too, as for runs: Ray takes their names in ASCII only.
    """
    clean = re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII if ascii_only else 0)
    if clean == text and not text.startswith(".") and len(text.encode()) <= most:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = clean.encode("utf-8", "replace")[: most - 9].decode("utf-8", "ignore").strip("._-")
    return f"{short}-{digest}" if short else digest


def password(address: str) -> str | None:
    """The password, key or other secret in an address, or None."""
    found = [match.group(2) for pattern in (_USER, _SECRETS) if (match := pattern.search(address))]
    return next(filter(None, found), None) if is_remote(address) else None


def public(address: str) -> str:
    """The address without user, password and the secrets in its query."""
    if not is_remote(address):
        return address
    found = _USER.search(address)
    # In Azure's addresses, the container stands before the @.
    if found and (found.group(2) is not None or not address.startswith("abfs")):
        address = address[: found.start()] + "://" + address[found.end() :]
    return _SECRETS.sub(r"\1=...", address)


def public_value(value: Any) -> Any:
    """A setting's value without the secrets of its addresses, also those in lists."""
    if isinstance(value, list):
        return [public_value(each) for each in value]
    return public(value) if isinstance(value, str) else value


def by_proxy(uri: str) -> str:
    """Says that a request goes to a proxy that the environment names, and what to do; empty if it doesn't."""
    import urllib.request  # which takes a while

    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:  # such as http://[::1
        return ""
    proxy = "" if urllib.request.proxy_bypass(parts.netloc) else urllib.request.getproxies().get(parts.scheme, "")
    if not proxy:
        return ""
    return (
        f"the request went to the proxy {public(proxy)} that the environment names: add {parts.hostname} to no_proxy, "
        f"or unset {parts.scheme}_proxy"
    )


def sqlite_uri(path: str) -> str:
    """The URI of a SQLite file, in which SQLAlchemy reads ``?`` as a query and ``%`` as an escape."""
    return _SQLITE + path.replace("%", "%25").replace("?", "%3F")


def with_absolute_file(uri: str) -> str:
    """The URI; that of a SQLite file with the file's absolute path."""
    file = uri.removeprefix(_SQLITE)
    return uri if file == uri else _SQLITE + absolute(file)


def sqlite_file(uri: str) -> str | None:
    """The path of the SQLite file that a URI names; None if it names none."""
    if not uri.startswith(_SQLITE):
        return None
    return urllib.parse.unquote(uri.removeprefix(_SQLITE).partition("?")[0])
