from srfa.page import Grid, Page, Section, to_html, to_markdown

PAGE = Page(
    "T & co",
    (
        Section("One", ("A sentence.",), ("a point",), Grid(("a", "b"), (("1|2", "<x>"), ("line\nbreak", "")))),
        Section("Picture", figure="p.png"),
    ),
)


def test_markdown_has_every_part_and_keeps_cells_apart():
    text = to_markdown(PAGE)
    assert "# T & co\n" in text
    assert "* a point" in text
    assert "| 1\\|2 | <x> |" in text
    assert "| line break |  |" in text
    assert "![Picture](p.png)" in text


def test_html_is_one_file_that_needs_no_network(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    text = to_html(PAGE, tmp_path)
    assert "<h1>T &amp; co</h1>" in text
    assert "<td>&lt;x&gt;</td>" in text
    assert 'src="data:image/png;base64,' in text
    assert "http" not in text
