"""A random model of 0.1 M parameters, for tests and for trying a recipe in seconds.

It is a real Llama with a real chat tokenizer, so every package treats it like any other model. It is
generated locally, without network. It knows nothing: its scores are meaningless.
"""

from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The tokenizer learns its merges from this text. Changing it changes the model called "tiny".
TEXT = """
The company said that its operating profit rose to 12.5 million euros in the third quarter, while net
sales fell by 4 percent from the year before. The shares went up. Is the sentiment of this news
positive, negative or neutral? Answer with one word. The answer is positive, because the profit grew.
Tom has 24 apples and gives 3 apples to each of his 5 friends. How many apples are left? First,
5 times 3 is 15. Then 24 minus 15 is 9. The answer is 9. A train travels 60 miles in an hour, so in
4 hours it travels 240 miles. Mary buys 7 books for 8 dollars each and pays 56 dollars in total.
Write a Python function that returns the sum of the even numbers in a list.
def sum_even(numbers):
    total = 0
    for number in numbers:
        if number % 2 == 0:
            total = total + number
    return total
Here is a function that counts the words in a text. It splits the text at white space and returns the
length of the result. What is the capital of France? The capital of France is Paris, a city on the
river Seine. Water boils at 100 degrees at the level of the sea. The heart pumps blood through the
body. Rinse a small burn under cool running water for about twenty minutes and cover it with a clean
cloth. Vitamin C is found in oranges and in other fruit; it helps the body to heal wounds. You should
see a doctor if the pain does not go away. Rewrite the following response in your own words, and keep
every fact, number and name. Below is an instruction, paired with an input that gives more context.
Write a response that completes the request. Please explain your answer step by step. This is what
they were asked, and these are the things which have been said about it. I would like to know where
the other people will go when there is no more time. She could make some of them, but then he did not
see any. We can use our own model to answer the question, and there are many ways to do this.
"""


def build_tiny(folder: str | Path, seed: int = 0) -> None:
    """Write the model and its tokenizer into a folder that `from_pretrained` reads.

    Llama of 2 layers, width 64, 4 heads over 2 key-value heads, tied embeddings; byte-level BPE with
    ChatML turns. The same seed gives the same bytes; torch's random state is left as it was.

    Args:
        folder: Folder to write to; created if missing.
        seed: Seed of the weights.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],  # ids 0, 1, 2
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,  # at the usual 0.02 the attention of such a small model is almost uniform
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
