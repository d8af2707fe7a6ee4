"""Chat templates with limits: what has no end is refused, what has one is rendered as before."""

from __future__ import annotations

from datetime import date

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from forgetting.data import bounded_jinja
from forgetting.data.jinja import JinjaTemplate
from forgetting.errors import InputError
from forgetting.formats import Unusable
from tests.data.families import FAMILIES

TURNS = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "It is."}]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Fewer than in a run, so that they are used up soon."""
    monkeypatch.setattr(bounded_jinja, "MAX_STEPS", 5000)
    monkeypatch.setattr(bounded_jinja, "STEPS_PER_TURN", 10)


def render(source):
    return JinjaTemplate(source, date(2026, 1, 31), {"eos_token": "</s>"}).render(TURNS)


ROUNDS = "{% for i in range(5000) %}{% for j in range(5000) %}{% endfor %}{% endfor %}"
GROWTH = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = GROWN %}{% endfor %}"

LONG = "('x' * 50000)"
MANY = "([['a'] * 10000] * 10000)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ROUNDS, "more than 5,000 steps"),
        (f"{{% macro f() %}}{ROUNDS}{{% endmacro %}}{{{{ f() }}}}", "5,000 steps"),
        (f"{{% if messages %}}{ROUNDS}{{% endif %}}", "5,000 steps"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(40) }}",
            "5,000 steps",
        ),
        (GROWTH.replace("GROWN", "n.x ~ n.x"), "a text or a list of more than"),
        (GROWTH.replace("GROWN", "n.x + n.x"), "a text or a list of more than"),
        (GROWTH.replace("'ab'", "[1]").replace("GROWN", "n.x + n.x"), "a text or a list of more"),
        ("{{ 'x' * 10**11 }}", "a text or a list of more than"),
        ("{{ 10**11 * [1] }}", "a text or a list of more than"),
        ("{{ 'x'.center(10**11) }}", "a text or a list of more than"),
        ("{{ 'x'.zfill(10**11) }}", "a text or a list of more than"),
        ("{{ 'x' | center(10**11) }}", "a text or a list of more than"),
        ("{{ 'x' | indent(10**11) }}", "a text or a list of more than"),
        ("{{ '%999999999999d' % 1 }}", "more than seven digits"),
        ("{{ '%*d' % (10**11, 1) }}", "more than seven digits"),
        ("{{ '%.999999999999f' | format(1) }}", "more than seven digits"),
        ("{{ '{:>999999999999}'.format(1) }}", "more than seven digits"),
        ("{{ '{:>{width}}'.format(1, width=10**9) }}", "more than seven digits"),
        ("{{ '\t'.expandtabs(tabsize=10**9) }}", "a text or a list of more than"),
        ("{{ (3).to_bytes(10**10, 'big') }}", "a text or a list of more than"),
        (f"{{{{ {LONG}.replace('x', {LONG}) }}}}", "a text or a list of more than"),
        (f"{{{{ {LONG} | replace('x', {LONG}) }}}}", "a text or a list of more than"),
        (f"{{{{ {LONG}.join(['a'] * 100000) }}}}", "a text or a list of more than"),
        (f"{{{{ range(99999) | join({LONG}) }}}}", "a text or a list of more than"),
        (f"{{% for i in range(4000) %}}{{{{ {LONG} }}}}{{% endfor %}}", "a text or a list of"),
        (
            f"{{% set x %}}{{% for i in range(4000) %}}{{{{ {LONG} }}}}{{% endfor %}}"
            "{% endset %}",
            "a text or a list of more than",
        ),
        (f"{{% for i in range(4000) %}}{'x' * 50000}{{% endfor %}}", "a text or a list of more"),
        (f"{{{{ {MANY} }}}}", "a list of more than 1,000,000 values"),
        (f"{{{{ {MANY} ~ '' }}}}", "a list of more than 1,000,000 values"),
        (f"{{{{ {MANY} | tojson }}}}", "a list of more than 1,000,000 values"),
        (f"{{{{ {MANY} | string }}}}", "a list of more than 1,000,000 values"),
        (f"{{{{ {MANY} | sum(start=[]) | length }}}}", "a list of more than 1,000,000 values"),
        ("{{ [1] | batch(10**9, 'x') | list | length }}", "a list into more than"),
        ("{{ [1] | slice(10**9) | list | length }}", "a list into more than"),
        ("{{ 9 ** (9 ** 9) }}", "more than 100,000 bits"),
        (GROWTH.replace("'ab'", "9").replace("GROWN", "n.x * n.x"), "bits"),
    ],
)
def test_a_template_without_an_end_is_refused(source, message):
    with pytest.raises(InputError, match=f"the chat template is not one for .*{message}"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ],
)
def test_endless_recursion_is_a_template_that_fails(source):
    with pytest.raises(Unusable, match="the chat template fails: maximum recursion depth"):
        render(source)


@pytest.mark.parametrize(
    "source",
    ["{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"],
    ids=["blocks", "brackets"],
)
def test_a_template_that_is_nested_too_deeply(source):
    with pytest.raises(TemplateError, match="nested too deeply"):
        JinjaTemplate(source, date(2026, 1, 31), {})


PLAIN = [
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{{ eos_token }}{% endfor %}",
    "{%- for m in messages -%}\n  {{ loop.index }} {% if loop.last %}{% break %}{% endif %}\n"
    "{%- else -%} none {%- endfor -%}\n",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{{ varargs }}{% endmacro %}{{ f(1) }}{{ f(1, 3, 4) }}",
    "{% macro f() %}[{{ caller(1) }}]{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% for m in messages if m.role == 'user' %}{{ m | tojson }}{% endfor %}",
    "{{ '%05.2f|%s' % (1.5, 'a') }}{{ '{:>6}'.format('b') }}{{ 2 ** 10 }}{{ 'ab' * 3 }}",
    "{{ [1] + [2] }}{{ 7 % 3 }}{{ 1.5 * 2 }}{{ '%s' | format(3) }}{{ 'a,b'.split(',')[-1] }}",
    "{{ 'x' | center(9) }}{{ 'a\nb' | indent(2) }}{{ '12345678%' }}{{ 'é'.upper() }}{{ 1 ~ none }}",
    "{{ '{{\"a\": {}}}'.format(1) }}{{ 'a-b'.replace('-', '+') | replace('a', 'c') }}",
    "{{ ['a', 'b'] | join(', ') }}{{ messages | map(attribute='role') | join }}{{ none }}{{ 2 }}",
    "{{ messages | join('|', attribute='role') }}{{ [[1], [2]] | sum(start=[]) }}{{ {'a': [1]} }}",
    "{{ messages | tojson(indent=2) }}{{ ','.join(['a', 'b']) }}{{ [3, 4] | sum }}",
    "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ messages | string }}",
    "{{ messages | groupby('role') | list }}{{ [1, 2] | sum | string }}{{ 'b' | tojson }}",
    GROWTH.replace("'ab'", "0").replace("GROWN", "n.x + i") + "{{ n.x }}",
]


@pytest.mark.parametrize(
    "source", [*PLAIN, *(family.template for family in FAMILIES.values() if family.template)]
)
def test_other_templates_are_rendered_as_transformers_does(source):
    variables = {"eos_token": "</s>", "bos_token": "<s>"}
    theirs = _compile_jinja_template(source).render(
        messages=TURNS, tools=None, add_generation_prompt=False, **variables
    )
    ours = JinjaTemplate(source, date.today(), variables).render(TURNS)
    assert ours == theirs


def test_every_conversation_has_its_own_steps():
    template = JinjaTemplate(
        "{% for i in range(60) %}{% for j in range(60) %}{% endfor %}{% endfor %}x",
        date(2026, 1, 31),
        {},
    )
    assert [template.render(TURNS) for _ in range(2)] == ["x", "x"]
