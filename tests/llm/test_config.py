import pytest

from mcq.errors import ConfigError
from mcq_llm.config import Options
from mcq_llm.setting import Override, Setting, setting_for


def test_the_last_matching_override_counts_alone():
    overrides = [
        Override.parse(text) for text in ("mlp=codebooks:3,group:4", "layers.0.=dense", "down_proj=scale:group")
    ]
    assert setting_for("layers.0.mlp.up_proj", Setting(), overrides) is None
    assert setting_for("layers.1.mlp.up_proj", Setting(), overrides) == Setting(codebooks=3, group=4)
    assert setting_for("layers.0.mlp.down_proj", Setting(), overrides) == Setting(scale="group")
    assert setting_for("layers.1.attn.q_proj", Setting(), overrides) == Setting()


def test_a_pattern_may_contain_an_equals_sign():
    assert Override.parse("(?=q)q_proj=bits:4") == Override("(?=q)q_proj", {"bits": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("down_proj", "PATTERN=key:value"),
        ("=dense", "PATTERN=key:value"),
        ("down_proj=books:3", "may set codebooks, bits, group, scale"),
        ("down_proj=codebooks", "as key:value"),
        ("down_proj=codebooks:many", "whole number, got 'many'"),
        ("down_proj=scale:column", "'none', 'row', 'group'"),
        ("(=dense", "not a regular expression"),
    ],
)
def test_bad_overrides_say_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Override.parse(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 100}, "at least one window of 1024, got 100"),
        ({"target": "none"}, "target must be one of"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"batch": 0}, "batch"),
        ({"correction": 1.5}, "correction"),
    ],
)
def test_bad_options_say_what_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message):
        Options(**changes)


@pytest.mark.parametrize("changes", [{"codebooks": 0}, {"bits": 17}, {"group": 0}, {"scale": "column"}])
def test_bad_settings_are_refused(changes):
    with pytest.raises(ConfigError):
        Setting(**changes)


def test_bits_choose_the_number_of_codebooks():
    assert Setting.of_bits(2) == Setting(codebooks=2, bits=8, group=8)
    assert str(Setting.of_bits(3)) == "3x8 g8"
