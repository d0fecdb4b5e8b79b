"""The settings: read once from flags and the environment, every problem reported at once.

The only module that reads the environment. Nothing here is a decision about billing: the org default is handed on as text
and interpreted by the resolver.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from billing_grpc.errors import SettingsError
from billing_grpc.server.settings import checks
from billing_grpc.server.settings.fields import ServeFields
from billing_grpc.server.settings.types import DatabaseUrl
from billing_grpc.setting_names import VARIABLES, other_settings


class _FromEnvironment(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True, hide_input_in_errors=True, case_sensitive=True, extra="ignore"
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value != ""}


class DatabaseSettings(_FromEnvironment):
    """The database, the only setting that `billing-grpc migrate` needs."""

    database_url: Annotated[DatabaseUrl, AfterValidator(checks.understood_database)] = Field(None, alias="DATABASE_URL")


class Settings(_FromEnvironment, ServeFields):
    """All settings of `billing-grpc serve`, from flags and the environment."""

    # A variable counts under its setting's name (the alias) alone, never under a field's name.
    model_config = SettingsConfigDict(populate_by_name=False)


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of `serve`; a flag, given by its setting's name, wins over the environment.

    Raises:
        SettingsError: a setting is wrong; one sentence for each.
    """
    unknown = unknown_settings()
    try:
        settings = Settings(**_given(flags))
    except ValidationError as error:
        raise SettingsError(_problems(error, Settings) + unknown) from error
    if unknown:
        raise SettingsError(unknown)
    return settings


def load_database_url(flag: str | None) -> str:
    """Return the URL of the database that `migrate` works on.

    Raises:
        SettingsError: the URL is missing or not one of Postgres, or a setting is unknown (perhaps a misspelt DATABASE_URL).
    """
    if unknown := unknown_settings():
        raise SettingsError(unknown)
    try:
        url = DatabaseSettings(**_given({"DATABASE_URL": flag})).database_url
    except ValidationError as error:
        raise SettingsError(_problems(error, DatabaseSettings)) from error
    if url is None:
        raise SettingsError(["DATABASE_URL: name the Postgres to migrate; there is no default"])
    return url.get_secret_value()


def unknown_settings() -> list[str]:
    """Return one sentence for every variable that is named like a setting and is not one: it may be misspelt."""
    known = {*(str(field.alias) for field in Settings.model_fields.values()), *VARIABLES.values()}
    return [
        f"{name}: there is no such setting; the nearest is {get_close_matches(name.upper(), sorted(known), 1, 0)[0]}"
        for name in other_settings(os.environ)
        if name not in known
    ]


def environment_with(additions: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of this process's environment with additions, for a child process; no setting is read here."""
    # `quieten_grpc` sets the same for this process, but not in `os.environ`.
    return {"GRPC_VERBOSITY": "NONE", **os.environ, **additions}


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    # An empty flag wins over the environment like any other, and says "unset".
    return {name: value for name, value in flags.items() if value is not None}


def _problems(error: ValidationError, settings: type[BaseSettings]) -> list[str]:
    # A default that is refused is reported under the field's name, a given value under the setting's.
    names = {name: str(field.alias) for name, field in settings.model_fields.items()}
    return [
        f"{names.get(str(problem['loc'][0]), problem['loc'][0])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
