"""The input of the teacher when it rewrites a response: (c, x, y) and a request.

For small models the wording matters: which prompt preserves labels, numbers and facts differs by domain.
Increment `VERSION` when a wording changes, so that old rewritings are not reused.

Paper: the teacher sees the true response, FedSDR section 3, after SDFT (Yang et al., ACL 2024,
arXiv 2402.13669), which the prompt "reference" follows.
"""

from fedsdr.data.conversation import Turn, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.plugins import FUNCTIONS
from fedsdr.rows import Rewriter

VERSION = 1


def rewriting_turns(name: str, example: Example) -> list[Turn]:
    """Turns whose answer is the rewriting y~.

    Args:
        name: A row of `methods.PROMPTS`.
        example: The example with its true response.
    """
    if name in FUNCTIONS[Rewriter]:
        own: list[Turn] = FUNCTIONS[Rewriter][name](example)
        return own
    *system, user = prompt_turns(example)
    question, answer = user["content"], example.response
    match name:
        case "reference":
            request = (
                f"Below are an instruction and a reference answer to it.\n\n### Instruction\n{question}\n\n"
                f"### Reference answer\n{answer}\n\n"
                "Answer the instruction in your own words, in agreement with the reference answer. "
                "Write only the answer."
            )
            return [*system, {"role": "user", "content": request}]
        case "paraphrase":
            rule = (
                "Rewrite the user's text in other words. Keep every fact, number and name. "
                "Add nothing. Write only the rewritten text."
            )
            return [{"role": "system", "content": rule}, {"role": "user", "content": answer}]
        case "turn":
            request = "Say that again in your own words. Keep all facts and the final answer."
            return [
                *system,
                user,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": request},
            ]
    raise KeyError(name)
