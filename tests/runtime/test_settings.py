from __future__ import annotations

import enum
from pathlib import Path
from typing import Literal

import pytest
from attrs import field, frozen

from penstock.runtime.settings import (
    LogSettings,
    PostgresSettings,
    RedisSettings,
    SettingsError,
    StartSettings,
    above_zero,
    describe,
    find_file,
    load,
    url_of,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@frozen(kw_only=True)
class Window:
    """Two keys that must go together.

    Attributes:
        first: the first.
        last: the last.
    """

    first: int = 1
    last: int = 10

    def __attrs_post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError("first must not be above last")


@frozen(kw_only=True)
class Everything:
    """A composite for these tests: every kind of key that there is.

    Attributes:
        profile: the profile.
        data_dir: a path.
        colour: an enumeration.
        strict: a truth value.
        tags: a list.
        limits: a table with free names.
        auth_token: a secret.
        redis: Redis.
        postgres: PostgreSQL.
        log: the log.
        start: the start.
        window: two keys that go together.
    """

    profile: Literal["dev", "prod"] = "dev"
    data_dir: Path = Path(".penstock")
    colour: Colour = Colour.RED
    strict: bool = False
    tags: tuple[str, ...] = ()
    limits: dict[str, int] = field(factory=dict)
    auth_token: str | None = None
    redis: RedisSettings = field(factory=RedisSettings)
    postgres: PostgresSettings = field(factory=lambda: PostgresSettings(pool_size=4))
    log: LogSettings = field(factory=LogSettings)
    start: StartSettings = field(factory=StartSettings)
    window: Window = field(factory=Window)


@frozen(kw_only=True)
class Range:
    """A key whose validator looks at another.

    Attributes:
        least: the least.
        most: the most.
    """

    least: int = 1
    most: int = field(default=10)

    @most.validator
    def _not_below_least(self, attribute: object, value: int) -> None:
        if value < self.least:
            raise ValueError("must not be below least")


@frozen
class Ranged:
    range: Range = field(factory=Range)


@frozen
class Inner:
    b_c: int = 1


@frozen
class Ambiguous:
    a_b_c: int = 1
    a: Inner = field(factory=Inner)


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("penstock.toml")


def problems(file: Path | None = None, **environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(Everything, file=file, environ=environ)
    return caught.value.problems


def test_without_file_and_environment_the_defaults_hold() -> None:
    assert load(Everything, file=None, environ={"PATH": "/bin"}) == Everything()


def test_a_default_that_the_composite_gives_its_section_is_kept_beside_what_is_set() -> None:
    settings = load(Everything, file=None, environ={"PENSTOCK_POSTGRES_CONNECT_TIMEOUT": "1"})
    assert settings.postgres == PostgresSettings(pool_size=4, connect_timeout=1.0)


def test_file_then_profile_then_environment_each_overrides_the_one_before(toml: Path) -> None:
    toml.write_text(
        'strict = true\n[redis]\nurl = "redis://file"\nconnect_timeout = 1\nresponse_timeout = 2.5\nstall_after = 0.5\n'
        '[profile.prod]\ndata_dir = "/srv"\n[profile.prod.redis]\nurl = "redis://prod"\nconnect_timeout = 7\n'
        '[profile.dev.redis]\nurl = "redis://dev"\n'
    )
    environ = {"PENSTOCK_PROFILE": "prod", "PENSTOCK_REDIS_URL": "rediss://environment:6380"}
    assert load(Everything, file=toml, environ=environ) == Everything(
        profile="prod",
        strict=True,
        data_dir=Path("/srv"),
        redis=RedisSettings(
            url="rediss://environment:6380", connect_timeout=7.0, response_timeout=2.5, stall_after=0.5
        ),
    )


def test_the_default_profile_is_dev(toml: Path) -> None:
    toml.write_text('[profile.dev]\ncolour = "blue"\n[profile.prod]\nstrict = true\n')
    assert load(Everything, file=toml, environ={}) == Everything(colour=Colour.BLUE)


def test_a_list_of_one_text_may_stand_without_brackets(toml: Path) -> None:
    toml.write_text('tags = "a, b"\n')
    assert load(Everything, file=toml, environ={}).tags == ("a, b",)


def test_a_validator_sees_its_neighbours_as_they_are_set_and_not_as_they_are_by_default() -> None:
    environ = {"PENSTOCK_RANGE_LEAST": "20", "PENSTOCK_RANGE_MOST": "30"}
    assert load(Ranged, file=None, environ=environ).range == Range(least=20, most=30)
    with pytest.raises(SettingsError) as caught:
        load(Ranged, file=None, environ={"PENSTOCK_RANGE_LEAST": "20"})
    assert str(caught.value) == "range.most is 10 by default: must not be below least"


def test_variables_are_read_as_the_type_of_their_key() -> None:
    settings = load(
        Everything,
        file=None,
        environ={
            "PENSTOCK_DATA_DIR": "/srv/penstock",
            "PENSTOCK_COLOUR": "blue",
            "PENSTOCK_STRICT": "Yes",
            "PENSTOCK_TAGS": "a, b,,c",
            "PENSTOCK_LIMITS": "{ a = 1, b = 2 }",
            "PENSTOCK_POSTGRES_POOL_SIZE": "3",
            "PENSTOCK_LOG_LEVEL": "debug",
            "PENSTOCK_REDIS_URL": "",
        },
    )
    assert settings == Everything(
        data_dir=Path("/srv/penstock"),
        colour=Colour.BLUE,
        strict=True,
        tags=("a", "b", "c"),
        limits={"a": 1, "b": 2},
        postgres=PostgresSettings(pool_size=3),
        log=LogSettings(level="debug"),
    )


def test_an_unknown_key_names_itself_its_place_and_the_nearest_key(toml: Path) -> None:
    toml.write_text('date_dir = "x"\n[redis]\nurll = "redis://h"\n[profile.prod.redis]\nconect_timeout = 1\n')
    assert problems(toml) == (
        'unknown key "date_dir" in penstock.toml; did you mean "data_dir"?',
        'unknown key "urll" in penstock.toml, table [redis]; did you mean "url"?',
        'unknown key "conect_timeout" in penstock.toml, table [profile.prod.redis]; did you mean "connect_timeout"?',
    )


@pytest.mark.parametrize("url", ["redis://:s3cret@h", "redis://:s3 'cret@h"])
def test_a_url_in_the_place_of_a_name_does_not_give_its_password_away(toml: Path, url: str) -> None:
    toml.write_text(f'[redis]\n"{url}" = 1\n[log."{url}"]\nx = 1\n[profile."{url}"]\n')
    named = ('key "redis://:***@h"', 'table [log."redis://:***@h"]', 'profile [profile."redis://:***@h"]')
    told = problems(toml)
    assert [f"unknown {each} in " in problem for each, problem in zip(named, told, strict=True)] == [True] * 3
    assert "cret" not in "".join(told)


def test_an_unknown_table_or_profile_is_named(toml: Path) -> None:
    toml.write_text("[reddis]\nurl = 1\n[profile.production]\nx = 1\n")
    assert problems(toml) == (
        "unknown table [reddis] in penstock.toml; did you mean [redis]?",
        "unknown profile [profile.production] in penstock.toml; there are dev and prod",
    )
    toml.write_text("profile.prod = 3\n")
    assert problems(toml) == ("profile.prod in penstock.toml must be a table, [profile.prod]",)


def test_a_key_of_another_table_is_told_where_it_belongs(toml: Path) -> None:
    toml.write_text("pool_size = 3\n[log]\nxyz = 1\n")
    assert problems(toml) == (
        'unknown key "pool_size" in penstock.toml; it belongs into [postgres]',
        'unknown key "xyz" in penstock.toml, table [log]; known here: level, format',
    )


def test_the_profile_is_chosen_by_the_environment_alone(toml: Path) -> None:
    toml.write_text('profile = "prod"\n')
    assert "which one is taken, PENSTOCK_PROFILE says" in problems(toml)[0]
    assert problems(PENSTOCK_PROFILE="test") == ('PENSTOCK_PROFILE is "test": must be one of dev, prod',)


def test_an_unknown_variable_is_an_error_that_names_the_nearest() -> None:
    assert problems(PENSTOCK_REDIS_ULR="redis://h") == (
        "unknown environment variable PENSTOCK_REDIS_ULR; did you mean PENSTOCK_REDIS_URL?",
    )


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_no_errors() -> None:
    environ = {
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT_HTTP": "47170",
        "PENSTOCK_PORT": "tcp://10.0.0.1:47170",
        "PENSTOCK_REDIS_PORT_6379_TCP": "tcp://10.0.0.2:6379",
        "PENSTOCK_REDIS_PORT_6379_TCP_ADDR": "10.0.0.2",
    }
    assert load(Everything, file=None, environ=environ) == Everything()
    assert problems(PENSTOCK_HTTP_PORT="8080")[0].startswith("unknown environment variable PENSTOCK_HTTP_PORT")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('strict = "yes"', 'strict in penstock.toml is "yes": must be true or false'),
        ('colour = "green"', 'colour in penstock.toml is "green": must be one of red, blue'),
        ("data_dir = 5", "data_dir in penstock.toml is 5: must be a path"),
        ("tags = 5", "tags in penstock.toml is 5: must be a list of text"),
        ("redis = 5", "redis in penstock.toml must be a table, [redis]"),
        ("auth_token = 12345", "auth_token in penstock.toml is ***: must be text"),
        (
            '[redis]\nconnect_timeout = "five"',
            'connect_timeout in penstock.toml, table [redis], is "five": must be a number',
        ),
        (
            "[redis]\nconnect_timeout = true",
            "connect_timeout in penstock.toml, table [redis], is True: must be a number",
        ),
        ("[redis]\nstall_after = nan", "stall_after in penstock.toml, table [redis], is nan: must be a number"),
        (
            "[redis]\nstall_after = inf",
            "stall_after in penstock.toml, table [redis], is inf: must be above 0 and finite",
        ),
        ("[postgres]\npool_size = 2.0", "pool_size in penstock.toml, table [postgres], is 2.0: must be a whole number"),
        ("[postgres]\npool_size = 0", "pool_size in penstock.toml, table [postgres], is 0: must be 1 or more"),
        ("[window]\nfirst = 11", "settings of [window]: first must not be above last"),
    ],
)
def test_a_wrong_value_names_key_place_value_and_what_is_expected(toml: Path, line: str, problem: str) -> None:
    toml.write_text(line + "\n")
    assert problems(toml) == (problem,)


def test_a_wrong_value_in_a_table_with_free_names_says_where_in_it(toml: Path) -> None:
    toml.write_text('[limits]\na = "x"\n')
    (problem,) = problems(toml)
    assert problem.startswith("limits in penstock.toml is {'a': 'x'}: must be a table (")
    assert "'a'" in problem.partition("must be")[2]


def test_a_wrong_variable_is_named_as_such() -> None:
    assert problems(PENSTOCK_POSTGRES_POOL_SIZE="many", PENSTOCK_LOG_LEVEL="loud") == (
        'PENSTOCK_POSTGRES_POOL_SIZE is "many": must be a whole number',
        'PENSTOCK_LOG_LEVEL is "loud": must be one of debug, info, warning, error, critical',
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:s3cret@h", "must be a URL that begins with redis:// or "),
        ("s3cret@h", "must be a URL that begins with redis:// or "),
        ("redis://u:s3cret@h:port", "must have ports that are numbers"),
        ("redis+cluster://u:s3cret@h:1,h:99999", "must have ports that are numbers"),
        ("redis://u:s3cret'@h:port", "must have ports that are numbers"),
        ('redis://u:s3cret" @h:port', "must have ports that are numbers"),
        ("redis:/u:s3cret'@h", "must be a URL that begins with redis:// or "),
        ("redis://", "must name a host"),
    ],
)
def test_a_bad_url_is_found_before_any_connection_and_its_password_is_not_shown(url: str, reason: str) -> None:
    (problem,) = problems(PENSTOCK_REDIS_URL=url)
    assert problem.startswith("PENSTOCK_REDIS_URL is ")
    assert reason in problem
    if ":s3cret" in url:
        assert "s3cret" not in problem


@pytest.mark.parametrize(
    "url",
    ["redis://h", "rediss://u:p@[::1]:6380/1", "redis+cluster://u:p@h1:7001,h2:7002", "unix:///run/redis.sock?db=1"],
)
def test_good_urls_are_taken_as_they_are(url: str) -> None:
    assert load(Everything, file=None, environ={"PENSTOCK_REDIS_URL": url}).redis.url == url


@pytest.mark.parametrize("url", ["redis://u:s3cret@h", "redis://u:s3 cret@h", "redis://u:s3'cret@h"])
def test_a_foreign_validator_that_quotes_the_value_does_not_give_a_password_away(toml: Path, url: str) -> None:
    def quoting(instance: object, attribute: object, value: str | None) -> None:
        if value is not None:
            raise ValueError(f"{value} will not do")

    @frozen(kw_only=True)
    class Quoting:
        url: str | None = field(default=None, validator=quoting)

    toml.write_text(f'url = "{url}"\n')
    with pytest.raises(SettingsError) as caught:
        load(Quoting, file=toml, environ={})
    assert str(caught.value) == 'url in penstock.toml is "redis://u:***@h": is not valid'


def test_all_problems_are_told_in_one_line_the_first_in_full(toml: Path) -> None:
    toml.write_text('strict = 1\n[log]\nlevel = "loud"\n')
    with pytest.raises(SettingsError) as caught:
        load(Everything, file=toml, environ={"PENSTOCK_NOPE": "1"})
    assert str(caught.value) == "strict in penstock.toml is 1: must be true or false (and 2 more)"
    assert len(caught.value.problems) == 3


def test_a_value_with_line_breaks_stays_on_one_line() -> None:
    (problem,) = problems(PENSTOCK_COLOUR="a\nb\x1b[31m")
    assert problem == 'PENSTOCK_COLOUR is "a\\nb\\x1b[31m": must be one of red, blue'


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"a = \n", "penstock.toml is not valid TOML: "), (b'a = "\xff"\n', "penstock.toml is not UTF-8 text (byte 5)")],
)
def test_a_file_that_cannot_be_read_is_named(toml: Path, content: bytes, problem: str) -> None:
    toml.write_bytes(content)
    assert problems(toml)[0].startswith(problem)


def test_the_file_is_the_option_then_the_variable_then_the_one_in_the_working_directory(toml: Path) -> None:
    assert find_file(None, {}) is None
    for name in ("option.toml", "variable.toml", "penstock.toml"):
        Path(name).write_text("")
    environ = {"PENSTOCK_CONFIG": "variable.toml"}
    assert find_file("option.toml", environ) == Path("option.toml")
    assert find_file(None, environ) == Path("variable.toml")
    assert find_file(None, {"PENSTOCK_CONFIG": ""}) == Path("penstock.toml")


def test_a_file_that_was_asked_for_and_is_not_there_is_an_error(toml: Path) -> None:
    with pytest.raises(SettingsError, match=r"no configuration file nope.toml \(asked for by --config\)"):
        find_file("nope.toml", {})
    with pytest.raises(SettingsError, match=r"no configuration file nope.toml \(asked for by PENSTOCK_CONFIG\)"):
        find_file(None, {"PENSTOCK_CONFIG": "nope.toml"})


@pytest.mark.parametrize("password", ["s3cret", "s3'cret", "s3 cret", '"s3cret"'])
def test_passwords_do_not_show_in_a_repr(password: str) -> None:
    settings = Everything(
        redis=RedisSettings(url=f"redis://u:{password}@h"),
        postgres=PostgresSettings(url=f"postgres://u:{password}@h/d"),
    )
    assert "cret" not in repr(settings)
    assert "'redis://u:***@h'" in repr(settings)


def test_a_class_with_two_keys_for_one_variable_is_refused_as_a_mistake_in_code() -> None:
    with pytest.raises(TypeError, match=r"a_b_c and a\.b_c are both PENSTOCK_A_B_C"):
        load(Ambiguous, file=None, environ={})


def test_a_class_with_a_field_without_default_is_refused_as_a_mistake_in_code() -> None:
    @frozen
    class Demanding:
        needed: int

    with pytest.raises(TypeError, match="every field of a settings class needs a default"):
        load(Demanding, file=None, environ={})


def test_every_key_is_described_with_its_variable_type_and_real_default() -> None:
    by_key = {doc.key: doc for doc in describe(Everything)}
    timeout = by_key["redis.connect_timeout"]
    assert (timeout.env, timeout.type, timeout.default) == ("PENSTOCK_REDIS_CONNECT_TIMEOUT", "a number", "5.0")
    assert timeout.doc == "seconds for a connection to be made, TLS and log-in included."
    assert by_key["redis.url"].default == "not set"
    assert by_key["postgres.pool_size"].default == "4"
    assert by_key["log.level"].type == "one of debug, info, warning, error, critical"
    assert by_key["tags"].default == "[]"
    assert by_key["colour"].default == '"red"'
    assert by_key["data_dir"].default == '".penstock"'


def test_keys_that_are_inherited_are_described_by_the_class_that_declares_them() -> None:
    @frozen(kw_only=True)
    class More(RedisSettings):
        """Redis and more.

        Attributes:
            more: something else.
        """

        more: int = 1

    by_key = {doc.key: doc.doc for doc in describe(More)}
    assert by_key["more"] == "something else."
    assert by_key["response_timeout"].startswith("seconds without a reply")


def test_a_key_without_a_line_of_documentation_is_refused() -> None:
    @frozen
    class Silent:
        """No block."""

        key: int = 1

    with pytest.raises(TypeError, match=r"Silent\.key has no line under Attributes:"):
        describe(Silent)


def test_validators_let_a_value_through_that_is_not_set() -> None:
    above_zero(None, None, None)
    url_of("redis")(None, None, None)
