"""Jinja chat templates for other programs: they render what `dialog.encode` writes, and so give the same tokens.

Exceptions lie in what a template is, a text that is tokenized as a whole: content that spells a special token becomes
it, and blanks with a line end that Llama 3's content begins with may join the header's. Calls come as OpenAI's, their
arguments objects or JSON in a string; the interpreter's code can only be taken out of an object.
"""

from __future__ import annotations

from herd.model.tokenizer import ChatFormat

CHATML = (  # of messages without calls
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = "".join(
    (
        "{{ bos_token }}{% for message in messages %}",
        "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}",
        "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}",
        "{% if message['content'] %}{{ message['content'] }}{% endif %}",
        "{% if message['tool_calls'] %}{% for tool_call in message['tool_calls'] %}",
        "{% set name = tool_call['function']['name'] %}{% set given = tool_call['function']['arguments'] %}",
        "{% set key = 'code' if name == 'python' else 'query' %}",
        "{% set tagged = loop.last and name in ['python', 'brave_search', 'wolfram_alpha'] %}",
        "{% if tagged and given is string %}",
        "{{ raise_exception('the arguments of ' + name + ' have to be an object, not JSON in a string') }}{% endif %}",
        "{% if tagged and given | length == 1 and given[key] is string %}",
        "{{ '<|python_tag|>' }}{% if key == 'code' %}{{ given[key] }}",
        "{% else %}{{ name + '.call(query=' + given[key] | tojson + ')' }}{% endif %}{{ '<|eom_id|>' }}",
        "{% else %}{% if message['content'] or not loop.first %}{{ '\n' }}{% endif %}",
        """{{ '{"type": "function", "name": ' + name | tojson + ', "parameters": ' }}""",
        "{% if given is string %}{{ given }}{% else %}{{ given | tojson }}{% endif %}{{ '}' }}",
        "{% if loop.last %}{{ '<|eot_id|>' }}{% endif %}{% endif %}{% endfor %}",
        "{% else %}{{ '<|eot_id|>' }}{% endif %}{% endfor %}",
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    )
)
TEMPLATES: dict[ChatFormat, str] = {"chatml": CHATML, "llama3": LLAMA3}
