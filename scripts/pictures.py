#!/usr/bin/env python3
"""Makes the pictures of the documentation: docs/pictures/terminal.svg and docs/pictures/report.png.

    scripts/pictures.py [BINARY]

BINARY is a release build (default target/release/ggro). Both pictures show real output of the demo pair on the CPU.
The report page is photographed by headless Chromium (`apt-get install chromium`, or set CHROMIUM); nothing else needs a
browser.
"""

import html
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
PROMPT = "Write a story about a lost kite."
LARGEST = 300_000  # bytes of a picture
PAGE = 1000  # pixels: width of the report's picture

COLUMNS = 92
CELL, LINE, MARGIN, BAR = 8.4, 20, 18, 30  # pixels: width of a character, height of a line, margin, title bar
STYLES = {"0": "", "1;32": "nudged", "33": "uncertain"}  # what `ggro generate --color always` writes


def output_of(*command):
    """Standard output and standard error of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout, done.stderr


def cells(text):
    """The characters of coloured text, each with its style."""
    style = ""
    for escape, character in re.findall(r"\x1b\[([0-9;]*)m|([\s\S])", text):
        if character:
            yield character, style
        else:
            style = STYLES[escape or "0"]


def rows(text):
    """Coloured text in rows of at most COLUMNS characters, broken at spaces."""
    row = []
    for character, style in cells(text):
        if character == "\n":
            yield row
            row = []
            continue
        row.append((character, style))
        if len(row) > COLUMNS:
            space = max((i for i, (c, _) in enumerate(row) if c == " "), default=COLUMNS)
            yield row[:space]
            row = row[space:]
            if row[0][0] == " ":
                row.pop(0)
    if row:
        yield row


def svg_row(row, y):
    """One row of text; its length is given, so that every font fits into the frame."""
    while row and row[-1][0] == " ":
        row = row[:-1]
    spans, start = [], 0
    for i in range(1, len(row) + 1):
        if i == len(row) or row[i][1] != row[start][1]:
            text = html.escape("".join(c for c, _ in row[start:i]), quote=False)
            style = row[start][1]
            spans.append(f'<tspan class="{style}">{text}</tspan>' if style else text)
            start = i
    if not spans:
        return ""
    return f'<text x="{MARGIN}" y="{y}" textLength="{len(row) * CELL:.1f}">{"".join(spans)}</text>\n'


def terminal(binary):
    """docs/pictures/terminal.svg: an answer as it looks on a terminal, without the time that it took."""
    story, summary = output_of(binary, "generate", "--device", "cpu", "--color", "always", PROMPT)
    summary = re.sub(r"^time .*\n", "", summary, flags=re.MULTILINE)
    typed = [[(c, "typed") for c in f'$ ggro generate "{PROMPT}"']]
    lines = [*typed, *rows(story), [], *rows(summary.strip("\n"))]
    width = round(COLUMNS * CELL + 2 * MARGIN)
    height = BAR + len(lines) * LINE + MARGIN
    body = "".join(svg_row(row, BAR + (i + 1) * LINE - 5) for i, row in enumerate(lines))
    (PICTURES / "terminal.svg").write_text(f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" xml:space="preserve">
<title>ggro generate "{PROMPT}"</title>
<style>
text {{ font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #24292f; white-space: pre }}
.typed {{ font-weight: bold }} .nudged {{ fill: #1a7f37; font-weight: bold }} .uncertain {{ fill: #9a6700 }}
</style>
<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="#fdfdfc" stroke="#d0d7de"/>
<circle cx="20" cy="16" r="5" fill="#e0605a"/><circle cx="38" cy="16" r="5" fill="#e0b050"/>\
<circle cx="56" cy="16" r="5" fill="#60b070"/>
{body}</svg>
""")


def report(binary, folder):
    """docs/pictures/report.png: the page of `ggro report`, with a segment opened."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        sys.exit("no Chromium to photograph the report page with: apt-get install chromium, or set CHROMIUM")
    run = [binary, "run", "--device", "cpu", "--input", ROOT / "assets/demo/prompts.jsonl", "--num-prompts", "50"]
    output_of(*run, "--method", "greedy", "--output", folder / "greedy.jsonl")
    output_of(*run, "--output", folder / "ggro.jsonl")
    page = folder / "report.html"
    output_of(binary, "report", folder / "greedy.jsonl", folder / "ggro.jsonl", "--html", page)
    # The picture shows a part of the page: the main numbers (not the times, which differ from run to run), two of the
    # four charts, and the first answer with a nudged segment opened.
    scene = """<style>
    .tools, article:nth-of-type(n + 2), #more, figure:nth-of-type(n + 3) { display: none !important }
    main { padding-bottom: 1rem }
    </style><script>
    for (const row of document.querySelectorAll("#numbers tr"))
      if (/token-|seconds|entropy|^segments/.test(row.firstChild.textContent)) row.remove();
    const segments = document.querySelectorAll("article:first-of-type .sides > div:last-child .seg");
    [...segments].filter(s => s.querySelector(".nudge"))[1].click();
    </script>"""
    page.write_text(page.read_text().replace("</html>", scene + "</html>"))
    common = ["--headless", "--no-sandbox", "--hide-scrollbars", "--disable-lcd-text"]
    common.append(f"--user-data-dir={folder / 'browser'}")
    height = page_height(browser, common, page)
    size = f"--window-size={PAGE},{height}"
    output_of(browser, *common, size, f"--screenshot={PICTURES / 'report.png'}", page.as_uri())
    unfilter(PICTURES / "report.png")


def page_height(browser, common, page):
    """Pixels that the page takes at the picture's width: it writes them into its own title."""
    measured = page.with_name("measured.html")
    script = "<script>document.title = document.querySelector('main').offsetHeight</script></html>"
    measured.write_text(page.read_text().replace("</html>", script))
    text, _ = output_of(browser, *common, f"--window-size={PAGE},1000", "--dump-dom", measured.as_uri())
    return int(re.search(r"<title>(\d+)</title>", text)[1])


def unfilter(picture):
    """Writes a PNG again, losslessly, without row filters: flat colours and text take a fifth less that way."""
    data, chunks, at = picture.read_bytes(), {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        chunks[kind] = chunks.get(kind, b"") + data[at + 8:at + 8 + length]
        at += 12 + length
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    if (depth, colours) not in ((8, 2), (8, 6)):
        sys.exit(f"{picture.name}: expected 8 bits of RGB or RGBA, found {depth} bits and colour type {colours}")
    step = 3 if colours == 2 else 4  # bytes of a pixel
    raw, length = zlib.decompress(chunks[b"IDAT"]), width * step
    above, rows = bytes(length + step), []
    for y in range(height):
        start = y * (length + 1)
        kind, row = raw[start], bytearray(step) + raw[start + 1:start + 1 + length]
        for x in range(step, len(row)) if kind else ():
            left, up, both = row[x - step], above[x], above[x - step]
            paeth = min((abs(up - both), 0, left), (abs(left - both), 1, up), (abs(left + up - 2 * both), 2, both))
            row[x] = (row[x] + (0, left, up, (left + up) // 2, paeth[2])[kind]) & 255
        rows.append(b"\0" + row[step:])
        above = row
    chunks[b"IDAT"] = zlib.compress(b"".join(rows), 9)
    picture.write_bytes(data[:8] + b"".join(chunk(kind, chunks[kind]) for kind in (b"IHDR", b"IDAT", b"IEND")))


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def main():
    binary = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/ggro").resolve()
    if not binary.exists():
        sys.exit(f"no binary {binary}: cargo build --release")
    PICTURES.mkdir(parents=True, exist_ok=True)
    terminal(binary)
    with tempfile.TemporaryDirectory() as folder:
        report(binary, Path(folder))
    for picture in sorted(PICTURES.iterdir()):
        size = picture.stat().st_size
        print(f"{picture.relative_to(ROOT)}: {size / 1000:.0f} KB")
        if size > LARGEST:
            sys.exit(f"{picture.name} has {size} bytes; {LARGEST} is the most")


if __name__ == "__main__":
    main()
