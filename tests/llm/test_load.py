import pytest
import torch

from mcq.errors import InputError
from mcq_llm.demo import packaged_model
from mcq_llm.load import load, require_dense
from mcq_llm.text import python_documentation, read_text, tokenize


def test_loads_a_folder_in_float32_for_evaluation(folders):
    model, tokenizer = load(folders["llama"])
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenize(tokenizer, "abc").shape == (3,)
    require_dense(model)


@pytest.mark.slow
def test_loads_a_gguf_file_as_a_dense_model_that_can_be_saved(tmp_path):
    try:
        path = packaged_model()
    except InputError as error:
        pytest.skip(str(error))
    model, tokenizer = load(path)
    require_dense(model)
    assert tokenizer.decode(tokenize(tokenizer, "Hello world.")) == "Hello world."
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.gguf", "no GGUF file none.gguf"),
        ("./none", "no folder none"),
        ("empty", "holds no config.json"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load(source)


def test_the_default_text_is_large():
    assert len(python_documentation()) > 400_000
    assert read_text(None) == python_documentation()


def test_an_unreadable_text_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for path in (tmp_path / "binary", tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot read .* as UTF-8 text"):
            read_text(path)
