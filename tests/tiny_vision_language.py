"""A chat model of images in miniature, of transformers' classes, that knows one thing: is there more red than blue?"""

from pathlib import Path
from typing import Any

import torch

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "yes", "no", "user", "assistant", ":")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


def tiny_vision_language(folder: Path, always: int | None = None) -> Path:
    """Save a model that was trained, in less than a second, to say yes to what is red and no to what is blue.

    Args:
        folder: where.
        always: the number of the word that it says instead, whatever it is shown.
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    text = transformers.LlamaConfig(
        **sizes, vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    train(model, always)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def train(model: Any, always: int | None) -> None:
    """Teach it its one answer to questions of some lengths."""
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.data.normal_(0, 0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(100):
        pixels = torch.randn(16, 3, 1, 1) + 0.1 * torch.randn(16, 3, 16, 16)
        answer = torch.where(pixels[:, 0].mean((1, 2)) > pixels[:, 2].mean((1, 2)), 5, 6)
        answer = answer if always is None else torch.full_like(answer, always)
        prompt = torch.tensor([7, 9, *[4] * 4, *[3] * (8 + step % 8), 5, 3, 3, 8, 9]).expand(16, -1)  # "... yes or no."
        tokens = torch.cat([prompt, answer.unsqueeze(1), torch.full((16, 1), 2)], 1)
        labels = torch.cat([torch.full_like(prompt, -100), tokens[:, -2:]], 1)
        loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
