from __future__ import annotations

import attrs
import pytest

from penstock.runtime.postgres import PostgresOptions


def test_a_url_fills_the_attributes() -> None:
    options = PostgresOptions.from_url("postgresql://mill:s%40lt@db1:5433/events?sslmode=require&connect_timeout=3")
    assert (options.host, options.port, options.user, options.password) == ("db1", "5433", "mill", "s@lt")
    assert options.database == "events"
    assert options.connect_timeout == 3.0
    assert dict(options.parameters) == {"sslmode": "require"}


def test_overrides_win_over_the_url() -> None:
    url = "postgres://db/events?application_name=of_the_url"
    assert PostgresOptions.from_url(url).application_name == "of_the_url"
    assert PostgresOptions.from_url(url, application_name="mine", max_size=3).application_name == "mine"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgres://mill:salt@db1/events", "postgresql://mill@db1/events"),
        ("postgresql://mill:salt@db1:1,db2:2/events", "postgresql://mill@db1:1,db2:2/events"),
        ("postgresql://mill:salt@[::1]:5433/events", "postgresql://mill@[::1]:5433/events"),
        ("postgresql://mill:salt@/events?host=/run/pg", "postgresql://mill@/events?host=/run/pg"),
        ("postgresql:///events?host=/run/pg&port=54330", "postgresql:///events?host=/run/pg&port=54330"),
        ("postgresql://", "postgresql:///"),
    ],
)
def test_the_address_shows_everything_but_the_secret(url: str, address: str) -> None:
    assert PostgresOptions.from_url(url).address == address


def test_nothing_shows_the_secret() -> None:
    options = PostgresOptions.from_url("postgresql://mill:salt@db/events?sslpassword=pepper")
    shown = f"{options!r} {options} {options.address}"
    assert "salt" not in shown
    assert "pepper" not in shown
    assert options.conninfo()["password"] == "salt"
    assert options.conninfo()["sslpassword"] == "pepper"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("mysql://mill:salt@db/events", "starts with postgresql://.*mysql://"),
        ("db/events", "no scheme"),
        ("postgresql://mill:salt@db:http/events", "port"),
        ("postgresql://mill:salt@db:99999/events", "port"),
        ("postgresql://mill:sa@lt@db/events", "%40"),
        ("postgresql://mill:sa%lt@db/events", "percent-encoded"),
        ("postgresql://mill:salt@db/events?sslmod=require", "'sslmod'"),
        ("postgresql://mill:salt@db/events?sslmode", "'sslmode' after . has no value"),
        ("postgresql://mill:a/b?salt@db/events", "percent-encoded"),
        ("postgresql://mill:a/b?salt=c@db/events", "percent-encoded"),
        ("postgresql://mill:salt@[::1/events", "brackets"),
        ("postgresql://mill:salt@db/events?connect_timeout=soon", "connect_timeout"),
    ],
)
def test_a_bad_url_says_what_is_wrong_without_the_secret(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        PostgresOptions.from_url(url)
    link: BaseException | None = caught.value
    while link is not None:
        assert "salt" not in str(link)
        assert "sa" not in str(link).split()
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_size": 0},
        {"min_size": 11},
        {"connect_timeout": 0},
        {"cancel_grace": -1.0},
        {"statement_timeout": 0},
        {"parameters": {"sslmod": "require"}},
    ],
)
def test_a_bad_value_names_its_attribute(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "parameters" not in wrong else "sslmod"):
        PostgresOptions(**wrong)  # type: ignore[arg-type]


def test_statement_timeout_is_added_to_the_options_of_the_url() -> None:
    url = "postgresql:///events?options=-c%20search_path%3Dmill"
    options = PostgresOptions.from_url(url, statement_timeout=1.5)
    assert options.conninfo()["options"] == "-c search_path=mill -c statement_timeout=1500"
    assert "options" not in PostgresOptions().conninfo()


def test_options_are_immutable() -> None:
    options = PostgresOptions(parameters={"sslmode": "require"})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        options.host = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        options.parameters["sslmode"] = "disable"  # type: ignore[index]
