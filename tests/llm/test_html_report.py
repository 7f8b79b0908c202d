import doctest
import json
import re
import sys
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mcq.errors import ConfigError, FormatError, InputError
from mcq_llm import rendering
from mcq_llm.cli import app
from mcq_llm.config import Options
from mcq_llm.html_report import write_report
from mcq_llm.summary import summarize

VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The text of a page, its ids and references; fails if an element is not closed in its place."""

    def __init__(self, source):
        super().__init__()
        self.stack, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.stack, self.stack
        self.whole_text = "".join(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def line(layer, **changes):
    values = {"rows": 4, "columns": 16, "setting": "2x8 g8", "error_before": 0.2, "error_after": 0.02, "seconds": 1.5}
    values |= {"error_predicted": None, "peak_megabytes": 500.0, "bits_payload": 2.0, "bits_all_in": 3.0}
    return {"layer": layer, **values, **changes}


NAMES = [
    f"model.layers.{i}.{kind}" for i in range(3) for kind in ("attn.q_proj", "mlp.experts.0.w1", "mlp.experts.1.w1")
]


@pytest.fixture
def folder(tmp_path):
    """Three blocks of three layers, with files as a quantization leaves them: 3 bits a weight, and a head."""
    tensors = {"lm_head.weight": torch.zeros(10, 16, dtype=torch.half)}
    for name in NAMES:
        tensors |= {f"{name}.codes": torch.zeros(8, dtype=torch.uint8), f"{name}.scales": torch.zeros(8).half()}
        tensors |= {f"{name}.bias": torch.zeros(4).half()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    lines = [line(name, error_after=0.01 * (i + 1)) for i, name in enumerate(NAMES)]
    (tmp_path / "quantize.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return tmp_path


@pytest.fixture
def page(folder):
    write_report(folder)
    return (folder / "report.html").read_text()


def test_the_page_is_well_formed_and_whole(page):
    found = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    references = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert references
    assert set(references) <= set(ids)


def test_the_page_asks_for_nothing_from_elsewhere(page):
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [value for name, value in found.attributes if name in ("src", "srcset", "data")]
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert "//" not in page
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_layer_and_kind_is_on_the_page(page):
    found = Page(page)
    assert {"q_proj", "w1"} <= set(found.text)
    for name in NAMES:
        assert name in found.whole_text
    assert page.count("<svg") == 2


def test_pictures_take_their_colours_from_the_page(page):
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--accent)" in drawings
    assert not re.findall(r"#[0-9a-f]{6}\b", drawings)


def test_names_are_escaped(folder):
    nasty = "model.layers.0.<script>alert('&')</script>"
    with open(folder / "quantize.jsonl", "a") as lines:
        lines.write(json.dumps(line(nasty, setting="<b>")) + "\n")
    write_report(folder)
    found = Page((folder / "report.html").read_text())
    assert nasty in found.whole_text
    assert not {"script", "b"} & set(found.tags)


def test_numbers_of_the_whole_and_of_kinds(folder):
    found = summarize(folder)
    assert list(found.kinds) == ["attn.q_proj", "mlp.experts.*.w1"]
    assert found.kinds["attn.q_proj"].error_after == pytest.approx((0.01 + 0.04 + 0.07) / 3)
    assert (found.total.layers, found.total.weights, found.total.seconds) == (9, 576, 13.5)
    assert [each.depth for each in found.lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_predicted_errors_are_beside_the_measured_ones(folder, page):
    assert "Predicted:" not in page
    lines = [line(name, error_predicted=0.0123 * (i < 8) or None) for i, name in enumerate(NAMES)]
    (folder / "quantize.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = summarize(folder)
    assert found.kinds["attn.q_proj"].error_predicted == pytest.approx(0.0123)
    assert found.total.error_predicted is None  # the last layer has none
    write_report(folder)
    text = Page((folder / "report.html").read_text()).whole_text
    assert "Predicted: of each layer alone" in text
    assert text.count("0.0123") == 8 + 1


def test_bits_are_weighted_by_size(folder):
    lines = [line("a.0.x", rows=1, bits_all_in=5.0), line("a.1.x", rows=3, bits_all_in=3.0)]
    (folder / "quantize.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert summarize(folder).total.bits_all_in == 3.5


def test_sizes_are_those_of_the_files(folder):
    sizes = summarize(folder).sizes
    assert (sizes.predicted, sizes.quantized) == (9 * 64 * 3 // 8, 9 * (8 + 16))
    assert sizes.rest == 10 * 16 * 2 + 9 * 4 * 2
    assert sizes.float16 == 9 * 64 * 2 + sizes.rest
    assert sizes.total == (folder / "model.safetensors").stat().st_size


def test_a_folder_without_weights_has_a_report_without_sizes(folder):
    (folder / "model.safetensors").unlink()
    write_report(folder)
    assert json.loads((folder / "report.json").read_text())["sizes"] is None
    assert "Size, predicted and real" not in Page((folder / "report.html").read_text()).text


def test_the_last_line_of_a_layer_counts_and_others_are_skipped(folder):
    with open(folder / "quantize.jsonl", "a") as lines:
        lines.write(json.dumps(line(NAMES[0], error_after=0.5)) + "\n" + json.dumps({"block": 0}) + "\n")
    found = summarize(folder)
    assert len(found.lines) == 9
    assert found.lines[0].error_after == 0.5


def test_json_has_the_same_numbers(folder):
    write_report(folder)
    found = json.loads((folder / "report.json").read_text())
    assert [each["layer"] for each in found["lines"]] == NAMES
    assert found["total"]["layers"] == 9
    assert found["evaluation"] is None


def test_errors_of_zero_and_one_layer_can_be_drawn(folder):
    (folder / "quantize.jsonl").write_text(json.dumps(line("model.layers.0.x", error_before=0.0, error_after=0.0)))
    write_report(folder)
    assert "model.layers.0.x" in Page((folder / "report.html").read_text()).whole_text


def test_same_folder_same_bytes(folder):
    write_report(folder)
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", InputError, "it is empty"),
        ("{", FormatError, "must be a JSON object"),
        ("3", FormatError, "must be a JSON object"),
        ('{"layer": "x"}', FormatError, "line 1 must have the field 'rows'"),
    ],
)
def test_damaged_lines_are_refused(folder, content, error, message):
    (folder / "quantize.jsonl").write_text(content)
    with pytest.raises(error, match=message):
        write_report(folder)


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"needs .*quantize.jsonl, .* give its output folder"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_weights_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match="must be a safetensors file"):
        write_report(folder)


def test_without_matplotlib_the_numbers_are_written_all_the_same(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "mcq_llm.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'multicodebook\[report\]'"):
        write_report(folder)
    assert json.loads((folder / "report.json").read_text())["total"]["layers"] == 9


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_from_a_model_to_its_report(folders, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    out, results = tmp_path / "out", tmp_path / "eval.json"
    run(
        "quantize",
        folders["llama"],
        "--out",
        out,
        "--calibration",
        tmp_path / "text.txt",
        "--tokens",
        128,
        "--window",
        32,
    )
    sizes = summarize(out).sizes
    assert sizes.quantized == sizes.predicted
    short = ["--text", tmp_path / "text.txt", "--windows", 2, "--window", 32]
    run("eval", out, "--reference", folders["llama"], *short, "--json", results)
    printed = run("report", out, "--evaluation", results)
    for name in ("report.json", "report.html", "README.md"):
        assert f"wrote {out / name}" in printed
    perplexity = f"{json.loads(results.read_text())['evaluation']['perplexity']:#.5g}"
    assert perplexity in Page((out / "report.html").read_text()).text
    assert f"| perplexity | {perplexity} |" in (out / "README.md").read_text()


def test_the_name_is_that_of_the_model_wherever_the_folder_is(folder):
    (folder / "quantization.json").write_text(
        json.dumps(
            {"name": "tiny-2bit", "base_model": None, "format": "aqlm", "options": asdict(Options()), "tokenizer": "0"}
            | {"calibration_text": None, "versions": {"multicodebook": "0"}}
        )
    )
    write_report(folder)
    text = Page((folder / "report.html").read_text()).text
    assert "tiny-2bit" in text
    assert folder.name not in text


def test_docstrings():
    assert doctest.testmod(rendering).failed == 0
