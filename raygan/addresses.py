"""Addresses as text: local paths, and URIs whose query says how to reach the storage.

``s3://bucket/folder?region=us-east-1&endpoint_override=http://minio:9000`` is a folder in a bucket; what is within it
has the same query after its own path. Nothing here opens anything: that is `raygan.storage`.
"""

from __future__ import annotations

import os
import posixpath
import re
import urllib.parse

#: A query. A question mark without a name and an equals sign behind it is one of a glob.
_QUERY = re.compile(r"\?\w+=.*$", re.DOTALL)

#: Names in queries whose values are secrets.
_SECRETS = re.compile(r"(?<=[?&])(\w*(?:secret|password|token|access_key|account_key)\w*|sig)=([^&]+)", re.IGNORECASE)


def is_remote(address: str) -> bool:
    """Whether the address is a URI."""
    return "://" in address


def split_query(address: str) -> tuple[str, str]:
    """The address without its query, and the query with its question mark; empty where there is none."""
    found = _QUERY.search(address) if is_remote(address) else None
    return (address[: found.start()], found.group()) if found else (address, "")


def join(address: str, *parts: str) -> str:
    """The address of something under `address`."""
    place, query = split_query(address)
    return posixpath.join(place, *parts) + query


def parent(address: str) -> str:
    """The address of the folder that something is in."""
    place, query = split_query(address)
    return posixpath.dirname(place.rstrip("/")) + query


def name(address: str) -> str:
    """The last part of an address's path."""
    return posixpath.basename(split_query(address)[0].rstrip("/"))


def absolute(address: str) -> str:
    """The address, where it is local as an absolute path."""
    if address.startswith("file://"):
        return urllib.parse.unquote(urllib.parse.urlsplit(address).path)
    return address if is_remote(address) else os.path.abspath(os.path.expanduser(address))


def password(address: str) -> str | None:
    """The password, key or other secret in an address, if there is one."""
    if not is_remote(address):
        return None
    in_query = _SECRETS.search(address)
    return urllib.parse.urlsplit(address).netloc.rpartition("@")[0].partition(":")[2] or (
        in_query.group(2) if in_query else None
    )


def public(address: str) -> str:
    """The address without a user name and password, and without the secrets of a query."""
    if not is_remote(address):
        return address
    parts = urllib.parse.urlsplit(address)
    user = parts.netloc.rpartition("@")[0]
    # Azure has the container before the @.
    if user and (":" in user or not parts.scheme.startswith("abfs")):
        address = address.replace(f"{user}@", "", 1)
    return _SECRETS.sub(r"\1=...", address)
