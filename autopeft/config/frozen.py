"""The base of every model that is read from a file: immutable, closed and free of silent conversions."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value object: unknown keys are refused, and nothing is converted but a whole number where a float is wanted.

    A bool is not a number, `"5"` is not 5, NaN and infinity are refused. Declare sequences as tuples: a YAML list
    becomes one, while Python code passes a tuple. The docstring under a field is its description everywhere.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # what is not checked (`Any`) must not turn into null on the way to a file
        use_attribute_docstrings=True,
    )
