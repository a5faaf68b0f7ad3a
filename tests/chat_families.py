"""Chat templates of many families of models, in `tests/chat_templates`: written anew, as their formats are described.

Each family says what a policy is asked with and what it is to say, so that a test can hold what is learnt against it.
"""

from dataclasses import dataclass
from pathlib import Path

from chat_tokenizers import make_tokenizer
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class Family:
    """How one family of models writes chats; `{q}` and `{a}` are a question and its answer."""

    name: str
    marks: tuple[str, ...]
    """Tokens that its tokenizer has besides the ends of a text."""
    asked: str
    """What a policy is asked with."""
    said: str
    """What it is to say, up to the end of its turn."""
    earlier: str = ""
    """What it is to say in a turn that is not the last; empty where that is the same."""
    eos: str = "</s>"
    bos: str | None = None
    end: str | None = None
    """The token that closes an answer; None where none does."""
    refuses_system: str = ""
    """What it says to a system turn."""
    tools: bool = False
    """It has a place for tools."""
    refuses: str = ""
    """How an answer that its template does not render as it asks for it is refused."""

    @property
    def said_earlier(self) -> str:
        return self.earlier or self.said

    def tokenizer(self) -> PreTrainedTokenizerFast:
        template = (FOLDER / f"{self.name}.jinja").read_text("utf-8")
        ends = dict.fromkeys(mark for mark in ("<pad>", self.bos, self.eos) if mark)
        return make_tokenizer(template, (*ends, *self.marks), eos=self.eos, bos=self.bos, pad="<pad>")


IM = ("<|im_start|>", "<|im_end|>")
IM_ASKED = "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
HEAD = "<|start_header_id|>{role}<|end_header_id|>\n\n"
LLAMA_3_ASKED = f"<begin>{HEAD.format(role='user')}{{q}}<|eot_id|>{HEAD.format(role='assistant')}"
GEMMA = ("<start_of_turn>", "<end_of_turn>")
GEMMA_ASKED = "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n"

FAMILIES = (
    Family("chatml", IM, IM_ASKED, "{a}<|im_end|>", end="<|im_end|>"),
    Family(
        "qwen2_5",
        IM,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + IM_ASKED,
        "{a}<|im_end|>",
        end="<|im_end|>",
        tools=True,
    ),
    Family(
        "qwen3",
        (*IM, "<think>", "</think>"),
        IM_ASKED,
        "<think>\n\n</think>\n\n{a}<|im_end|>",
        "{a}<|im_end|>",
        end="<|im_end|>",
        tools=True,
    ),
    Family("llama2", (), "<s>[INST] {q} [/INST]", " {a} </s>", bos="<s>", end="</s>"),
    Family("llama3", HEADERS, LLAMA_3_ASKED, "{a}<|eot_id|>", eos="<end>", bos="<begin>", end="<|eot_id|>"),
    Family(
        "llama3_1",
        HEADERS,
        "<begin>"
        + HEAD.format(role="system")
        + "Knowledge ends: December 2023\n\n<|eot_id|>"
        + LLAMA_3_ASKED.removeprefix("<begin>"),
        "{a}<|eot_id|>",
        eos="<end>",
        bos="<begin>",
        end="<|eot_id|>",
        tools=True,
    ),
    Family(
        "mistral_v3",
        ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
        "<s>[INST]{q}[/INST]",
        "{a}</s>",
        bos="<s>",
        end="</s>",
        tools=True,
    ),
    Family(
        "gemma2",
        GEMMA,
        GEMMA_ASKED,
        "{a}<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        end="<end_of_turn>",
        refuses_system="System role not supported",
    ),
    Family("gemma3", GEMMA, GEMMA_ASKED, "{a}<end_of_turn>", eos="<eos>", bos="<bos>", end="<end_of_turn>"),
    Family(
        "phi3",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|user|>\n{q}<|end|>\n<|assistant|>\n",
        "{a}<|end|>",
        eos="<|endoftext|>",
        end="<|end|>",
    ),
    Family(
        "phi4",
        (*IM, "<|im_sep|>"),
        "<|im_start|>user<|im_sep|>{q}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{a}<|im_end|>",
        eos="<|endoftext|>",
        end="<|im_end|>",
    ),
    Family(
        "deepseek_r1",
        ("<|User|>", "<|Assistant|>", "<think>", "</think>"),
        "<s><|User|>{q}<|Assistant|><think>\n",
        "",
        bos="<s>",
        end="</s>",
        refuses="asked with '<|Assistant|><think>\\n', answered with '<|Assistant|>the door is red.</s>'",
    ),
    Family(
        "glm4",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        "[gMASK]<sop><|user|>\n{q}<|assistant|>\n",
        "{a}<|endoftext|>",
        "{a}",
        eos="<|endoftext|>",
        tools=True,
    ),
    Family(
        "granite3",
        ("<|start_of_role|>", "<|end_of_role|>"),
        "<|start_of_role|>system<|end_of_role|>You are an assistant.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>{q}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{a}<|end_of_text|>",
        eos="<|end_of_text|>",
        end="<|end_of_text|>",
        tools=True,
    ),
    Family(
        "command_r",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<BOS><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{q}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{a}<|END_OF_TURN_TOKEN|>",
        eos="<EOS>",
        bos="<BOS>",
        end="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        "olmo2",
        (),
        "<|endoftext|><|user|>\n{q}\n<|assistant|>\n",
        "{a}<|endoftext|>",
        eos="<|endoftext|>",
        bos="<|endoftext|>",
        end="<|endoftext|>",
    ),
    Family("zephyr", (), "<|user|>\n{q}</s>\n<|assistant|>", "\n{a}</s>", end="</s>"),
    Family(
        "smollm2",
        IM,
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n" + IM_ASKED,
        "{a}<|im_end|>",
        end="<|im_end|>",
    ),
    Family(
        "harmony",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        "<|start|>system<|message|>Knowledge ends: 2024-06<|end|><|start|>user<|message|>{q}<|end|><|start|>assistant",
        "<|channel|>final<|message|>{a}<|return|>",
        "<|channel|>final<|message|>{a}",
        end="<|return|>",
    ),
    Family(
        "vicuna",
        (),
        "A chat between a curious user and an assistant. USER: {q} ASSISTANT:",
        " {a}</s>",
        end="</s>",
    ),
    Family("alpaca", (), "### Instruction:\n{q}\n\n### Response:\n", "{a}</s>", "{a}"),
    Family("falcon", (), "User: {q}\nFalcon:", " {a}</s>", " {a}"),
    Family(
        "openchat",
        ("<|end_of_turn|>",),
        "<s>GPT4 Correct User: {q}<|end_of_turn|>GPT4 Correct Assistant:",
        " {a}<|end_of_turn|>",
        bos="<s>",
        end="<|end_of_turn|>",
    ),
    Family("always_asks", HEADERS, LLAMA_3_ASKED, "{a}<|eot_id|>", eos="<end>", bos="<begin>", end="<|eot_id|>"),
    Family("always_asks_plainly", (), "User: {q}\nAssistant:", " {a}</s>", " {a}"),
    Family(
        "never_asks",
        IM,
        IM_ASKED.removesuffix("<|im_start|>assistant\n"),
        "<|im_start|>assistant\n{a}<|im_end|>",
        end="<|im_end|>",
    ),
    Family("wants_a_question", IM, IM_ASKED, "{a}<|im_end|>", end="<|im_end|>"),
    Family("marks_what_is_generated", IM, IM_ASKED, "{a}<|im_end|>", end="<|im_end|>"),
)
