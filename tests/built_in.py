"""The built-in domains as plain examples."""

from fedsdr.config import Data
from fedsdr.data.examples import Example
from fedsdr.data.sources import load_domains


def demo_data() -> dict[str, tuple[list[Example], list[Example]]]:
    """Training and test examples of each domain, sorted by its name."""
    return {
        name: ([record.example for record in domain.train], [record.example for record in domain.test])
        for name, domain in load_domains(Data()).items()
    }
