"""Settings of the data: where the logs come from, how they are split, how semantic IDs are fitted. Imports no
torch.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
