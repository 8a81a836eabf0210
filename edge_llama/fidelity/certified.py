"""Where a certificate stands: in a GGUF file's header, or in a bundle's manifest, whose hashes cover it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge_llama.errors import ArtifactError, NotVerifiableError, OutputError
from edge_llama.fidelity.certificate import Certificate, decode, from_json
from edge_llama.files.gguf import Header, is_gguf
from edge_llama.files.gguf_parts import read_parts
from edge_llama.files.integrity import (
    CERTIFICATE_BYTES,
    certificate_of,
    plain_sha256,
    put_certificate,
)
from edge_llama.files.manifest import NAME, StoredFile, read_manifest
from edge_llama.host.atomic import new_file

_MANIFEST_BYTES = 1 << 19
"""Of a manifest, so that there is room beside it for all that else stands there."""


def subject_at(path: Path) -> str:
    """What the certificate of the model at ``path`` must say that it is of: its hash without a certificate.

    ArtifactError if it can't be read, NotVerifiableError if it has no room for one.
    """
    if (path / NAME).is_file():
        return _of_files(read_manifest(path).files)
    if path.is_dir() or not is_gguf(path):
        raise NotVerifiableError(
            f"{path}: holds no certificate: a GGUF file or a bundle may", remedy="convert with edge-llama --certify"
        )
    return _of_headers(read_parts(path))


def read_certificate(path: Path) -> Certificate | None:
    """That of the model at ``path``, a GGUF file or a folder; None if it has none.

    ArtifactError if it is malformed, of a later version, or of another model.
    """
    if path.is_dir():
        return certificate_in_bundle(path) if (path / NAME).is_file() else None
    return certificate_in_file(read_parts(path)) if is_gguf(path) else None


def certificate_in_file(headers: Sequence[Header]) -> Certificate | None:
    """That of a GGUF file, or of several, whose headers these are. Errors as :func:`read_certificate`."""
    raw = certificate_of(headers[0])
    if not raw:
        return None
    found = decode(headers[0].path, raw)
    _check(headers[0].path, found, _of_headers(headers))
    return found


def certificate_in_bundle(folder: Path) -> Certificate | None:
    """That of the bundle in ``folder``. Errors as :func:`read_certificate`."""
    manifest = read_manifest(folder)
    if not manifest.certificate:
        return None
    found = from_json(folder / NAME, manifest.certificate)
    _check(folder / NAME, found, _of_files(manifest.files))
    return found


def put_at(path: Path, certificate: Certificate) -> None:
    """Put it into the model at ``path``, which must not have taken its place yet.

    OutputError if it is too large, or can't be written; NotVerifiableError where there is no room for one.
    """
    if (path / NAME).is_file():
        certificate.encode(_MANIFEST_BYTES)
        manifest = replace(read_manifest(path), certificate=certificate.to_json())
        try:
            content = manifest.encode()
            with new_file(path / NAME) as file:
                file.write(content)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise OutputError(f"{path / NAME}: cannot be written: {why}", remedy="make room") from error
        return
    put_certificate(read_parts(path)[0], certificate.encode(CERTIFICATE_BYTES))


def _check(path: Path, found: Certificate, subject: str) -> None:
    if found.subject != subject:
        raise ArtifactError(
            f"{path}: its certificate is of another file: subject is {found.subject[:16]}…, the file's is "
            f"{subject[:16]}…",
            remedy="convert the checkpoint again with --certify",
        )


def _of_headers(headers: Sequence[Header]) -> str:
    return hashlib.sha256(b"".join(map(plain_sha256, headers))).hexdigest()


def _of_files(files: Mapping[str, StoredFile]) -> str:
    lines = (f"{name}\0{file.nbytes}\0{file.sha256}\n" for name, file in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
