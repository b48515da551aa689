"""Chat templates are a stranger's code."""

import pytest

from models.errors import InvalidTemplate
from models.prompts import ChatTemplate

CHATML = """
{%- for message in messages %}
    {%- if message['role'] not in ('system', 'user', 'assistant') %}
        {{ raise_exception('unknown role ' ~ message['role']) }}
    {%- endif %}
    {{- bos_token ~ message['role'] ~ '\n' ~ message['content'] | trim ~ eos_token ~ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
"""


def test_messages_become_the_text_that_the_template_says() -> None:
    template = ChatTemplate(CHATML, "<s>", "</s>")
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "<b>é</b>"}]
    expected = "<s>system\nBe brief.</s>\n<s>user\n<b>é</b></s>\n"
    assert template.render(messages) == expected + "<assistant>"
    assert template.render(messages, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_breaks_out_or_breaks_is_a_named_error(source: str) -> None:
    template = ChatTemplate(source)
    with pytest.raises(InvalidTemplate):
        template.render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% for a in b %}", "x" * (1 << 19)])
def test_what_does_not_compile_is_a_named_error(source: str) -> None:
    with pytest.raises(InvalidTemplate):
        ChatTemplate(source)
