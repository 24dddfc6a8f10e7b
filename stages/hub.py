"""What everything that goes up to the Hugging Face hub shares."""

from typing import Any

from ..errors import UsageError

CITATION = """```bibtex
@inproceedings{zhu2025tgdpo,
  title     = {{TGDPO}: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization},
  author    = {Zhu, Mingkang and Chen, Xi and Wang, Zhongdao and Yu, Bei and Zhao, Hengshuang and Jia, Jiaya},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2506.14574}
}
```"""


def make_repository(name: str, option: str, *, repo_type: str, private: bool) -> str:
    """Makes the repository where there is none.

    Args:
        name: with the user's or organisation's name and a slash, or without.
        option: what the name was given with, for messages.
        repo_type: of huggingface_hub: model, dataset.

    Returns:
        Its id, with the user's name where `name` left it out.

    Raises:
        UsageError: there is no token, or the hub does not let it.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UsageError("nobody is logged in to the hub", fix="run hf auth login, or set HF_TOKEN")
    try:
        return HfApi().create_repo(name, repo_type=repo_type, private=private or None, exist_ok=True).repo_id
    except Exception as error:
        raise UsageError(
            f"the repository {name} cannot be made or written to ({reason(error)})",
            fix=f"check {option}, the token's rights and the network",
        ) from error


def reason(error: Any) -> str:
    """The first line of what a library says, never with the token in it."""
    from huggingface_hub import get_token

    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    token = get_token()
    return text.replace(token, "***") if token else text
