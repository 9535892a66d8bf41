"""Certificates of forgetting: JSON that lists the removed documents, the check, and the digest of the library that remained.

A certificate is sealed with the sha256 of its content, or signed with HMAC-SHA256 if a key is given. A changed byte breaks
either. A seal proves that nobody changed the certificate by accident, and a signature that the holder of the key wrote it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from memtx.errors import UserError

FORMAT = 1
METHODS = {
    "erase": "the documents were read separately, and their entries are deleted: the library equals one that never read them",
    "replay": "the state was made again from the texts of the other documents: the library equals one that never read them",
    "mask": "the entries are deleted where they are stored; traces may remain in other entries of the same state or document",
}


CHECKED = "the record does not have it, no file has entries of it alone, and all other files are intact"
REREAD = "; the other documents, read again from their texts, give the same library"


def make_certificate(
    method: str, removed: Sequence[Mapping[str, Any]], before: str, after: str, version: int, time: str, check: str
) -> dict[str, Any]:
    """Return a certificate without a seal.

    removed: descriptions of the documents by `Record.describe`. before, after: digests of the library. version: of the library
    afterwards. check: the check that was made and passed.
    """
    return {
        "memtx certificate": FORMAT,
        "time": time,
        "method": method,
        "meaning": METHODS[method],
        "removed": [*removed],
        "before": before,
        "after": after,
        "version": version,
        "check": check,
        "passed": True,
    }


def sealed(certificate: Mapping[str, Any], key: bytes | None = None) -> dict[str, Any]:
    """Return the certificate with a seal, or with a signature by the key."""
    algorithm = "sha256" if key is None else "hmac-sha256"
    content = {name: value for name, value in certificate.items() if name != "seal"}
    return {**content, "seal": {"algorithm": algorithm, "value": _seal({**content, "algorithm": algorithm}, key)}}


def check_seal(certificate: Mapping[str, Any], key: bytes | None = None) -> None:
    """Raise a UserError if the certificate was changed, or was not signed with this key."""
    try:
        seal, algorithm = certificate["seal"]["value"], certificate["seal"]["algorithm"]
        known = certificate["memtx certificate"] == FORMAT and certificate["method"] in METHODS
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UserError("this is not a certificate of memtx")
    if algorithm == "hmac-sha256" and key is None:
        raise UserError("the certificate is signed; give the key that signed it")
    if algorithm == "sha256" and key is not None:
        raise UserError("the certificate is not signed, but a key is given")
    whole = sealed(certificate, key)["seal"]
    same = hmac.compare_digest(f"{algorithm} {seal}".encode(), " ".join(whole.values()).encode())
    if not same or certificate["seal"].keys() != whole.keys():
        wrong = "" if key is None else ", or it was signed with another key"
        raise UserError(f"the certificate was changed after it was written{wrong}")


def _seal(content: Mapping[str, Any], key: bytes | None) -> str:
    text = json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest() if key is None else hmac.new(key, text, hashlib.sha256).hexdigest()
