"""PDFs for tests: small ones with text that can be read, and some that are made to do harm."""

from __future__ import annotations

import io
import zlib

import pypdf

PAGE = (
    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {} 0 R /Resources << /Font << /F1 {} 0 R >> >> >>"
)


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page; a page of nothing has none."""
    return pdf_of([f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET".encode() if page else b"" for page in pages])


def pdf_of(streams: list[bytes], *, deflated: bool = False) -> bytes:
    """A PDF whose pages have these content streams."""
    font = 3 + 2 * len(streams)
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(streams)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>".encode(),
    ]
    for n, stream in enumerate(streams):
        objects.append(PAGE.format(4 + 2 * n, font).encode())
        filters = b"/Filter /FlateDecode " if deflated else b""
        objects.append(b"<< %b/Length %d >>\nstream\n%b\nendstream" % (filters, len(stream), stream))
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    return _file(objects)


def encrypted_pdf(text: str, *, password: str) -> bytes:
    """A PDF that asks for a password; with an empty one it only forbids changes."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(text)))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


def bomb(size: int) -> bytes:
    """A PDF with a page that unpacks to so many bytes."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * 1_000_000) for _ in range(size // 1_000_000)) + packer.flush()
    return pdf_of([packed], deflated=True)


def endless_work() -> bytes:
    """A PDF that is valid and small, and whose one page takes minutes to be read."""
    line = b"BT /F1 1 Tf 1 0 0 1 1 1 Tm (a) Tj ET q 1 0 0 1 0 0 cm Q\n"
    return pdf_of([zlib.compress(line * 1_000_000, 9)], deflated=True)


def _file(objects: list[bytes]) -> bytes:
    made = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    end = len(made)
    made += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    made += b"".join(b"%010d 00000 n \n" % place for place in places)
    made += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, end)
    return bytes(made)
