import pytest

from mcq.errors import ConfigError
from mcq_llm.codecs import CODECS, AdditiveSetting, ResidualSetting
from mcq_llm.config import Options
from mcq_llm.overrides import Override, setting_for


def test_the_last_matching_override_counts_alone():
    overrides = [
        Override.parse(text) for text in ("mlp=codebooks:3,group:4", "layers.0.=dense", "down_proj=scale:group")
    ]
    assert setting_for("layers.0.mlp.up_proj", AdditiveSetting(), overrides) is None
    assert setting_for("layers.1.mlp.up_proj", AdditiveSetting(), overrides) == AdditiveSetting(codebooks=3, group=4)
    assert setting_for("layers.0.mlp.down_proj", AdditiveSetting(), overrides) == AdditiveSetting(scale="group")
    assert setting_for("layers.1.attn.q_proj", AdditiveSetting(), overrides) == AdditiveSetting()


def test_a_pattern_may_contain_an_equals_sign():
    assert Override.parse("(?=q)q_proj=bits:4") == Override("(?=q)q_proj", {"bits": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("down_proj", "PATTERN=key:value"),
        ("=dense", "PATTERN=key:value"),
        ("down_proj=codebooks", "must set key:value"),
        ("(=dense", "not a regular expression"),
    ],
)
def test_bad_overrides_say_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Override.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("books:3", "additive codes have the options rotate, codebooks, bits, group, scale, dtype, got 'books'"),
        ("codebooks:many", "codebooks must be an integer .* got 'many'"),
        ("codebooks:1.5", "codebooks must be an integer .* got 1.5"),
        ("scale:column", "'none', 'row', 'group'"),
        ("codec:none", "codec must be one of 'additive', 'residual'"),
    ],
)
def test_overrides_that_do_not_suit_the_codec_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Override.parse(f"down_proj={text}").apply(AdditiveSetting())


def test_every_codec_has_settings_from_few_to_many_bits():
    for codec, kind in CODECS.items():
        setting = kind()
        assert setting.codec == codec
        candidates = setting.candidates()
        bits = [candidate.cost(512, 512).all_in for candidate in candidates]
        assert bits[0] == min(bits) < 2.2
        assert bits[-1] == max(bits) >= 5
        assert len(set(map(str, candidates))) == len(candidates) > 8
        if codec == "lattice":  # stands for others
            continue
        assert kind.of_bits(3).cost(512, 512).payload == pytest.approx(3, abs=0.1)
        assert type(setting.quantizer()).kind == codec
        assert setting.quantizer() is not setting.quantizer()


def test_rotated_settings_say_so():
    setting = AdditiveSetting(rotate=True)
    assert str(setting) == "2x8 g8 rotated"
    assert setting.quantizer().kind == "rotated"
    assert setting.cost(512, 512).all_in - AdditiveSetting().cost(512, 512).all_in == 64 / 512**2
    with pytest.raises(ConfigError, match="rotate rows themselves"):
        CODECS["grid"](rotate=True)


def test_an_override_may_change_the_codec():
    override = Override.parse("down_proj=codec:residual,codebooks:3")
    assert override.apply(AdditiveSetting(group=4)) == ResidualSetting(codebooks=3)
    assert str(override.apply(AdditiveSetting())) == "residual 3x8 g8"


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
        AdditiveSetting(**changes)


def test_bits_choose_the_number_of_codebooks():
    assert AdditiveSetting.of_bits(2) == AdditiveSetting(codebooks=2, bits=8, group=8)
    assert str(AdditiveSetting.of_bits(3)) == "3x8 g8"
