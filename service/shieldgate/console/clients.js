// What to paste into each client and gateway; docs/ has the same lines, and says more of each.

export const groups = ({ url, host, hostname, port }) => [
  ["Ask for verdicts", "Texts are judged, and nothing is answered.", [
    {
      name: "curl",
      lines: `curl ${url}/v1/moderations -H 'content-type: application/json' \\
  -H 'authorization: Bearer sg-...' -d '{"input": "How do I bake a sourdough loaf?"}'`,
    },
    {
      name: "curl, with an answer and all the reasons",
      lines: `curl ${url}/v1/screen -H 'content-type: application/json' \\
  -H 'authorization: Bearer sg-...' \\
  -d '{"prompt": "What do you think of my loaf?", "response": "It is as dull as you are, loser."}'`,
    },
    {
      name: "OpenAI for Python",
      lines: `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="sg-...")
reply = client.moderations.create(input="How do I bake a sourdough loaf?")
print(reply.results[0].flagged, reply.results[0].category_scores.harassment)`,
    },
    {
      name: "OpenAI for JavaScript",
      lines: `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${url}/v1", apiKey: "sg-..." });
const reply = await client.moderations.create({ input: "How do I bake a sourdough loaf?" });
console.log(reply.results[0].flagged, reply.results[0].category_scores.harassment);`,
    },
    {
      name: "Decisions: questions about a text",
      about: "openai 3.57 or newer. A question that is named like a policy is that policy.",
      lines: `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="sg-...")
reply = client.decisions.create(
    model="default",
    input="How do I bake a sourdough loaf?",
    questions=[
        {"type": "predicate", "name": "harassment", "instructions": ""},
        {"type": "predicate", "instructions": "The text gives medical advice."},
    ],
)
for answer in reply.answers:
    print(answer.name, answer.probability)`,
    },
    {
      name: "shieldgate's own library",
      about: "For notebooks and scripts: one text, many, or an evaluation.",
      lines: `import shieldgate

scorer = shieldgate.open_scorer("${url}", key="sg-...")
print(scorer.judge("How do I bake a sourdough loaf?").violated)`,
    },
  ]],
  ["Chat through the guard", "Needs a model behind this server: serve --upstream, or --generator. Prompts are judged on the way in, answers on the way out. Where this server has no keys of its own, the key goes on to the model.", [
    {
      name: "OpenAI for Python, chats",
      about: "Also by the variable OPENAI_BASE_URL, without a change of the program.",
      lines: `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="sg-...")
reply = client.chat.completions.create(
    model="gemma2", messages=[{"role": "user", "content": "How do I bake bread?"}]
)
print(reply.choices[0].message.content)`,
    },
    {
      name: "OpenAI's Responses",
      about: "For a model that has them, as OpenAI's API and vLLM do.",
      lines: `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="sg-...")
print(client.responses.create(model="gemma2", input="How do I bake bread?").output_text)`,
    },
    {
      name: "Anthropic for Python",
      about: "For a model that has Anthropic's Messages. The address is the server's, without /v1.",
      lines: `import anthropic

client = anthropic.Anthropic(base_url="${url}", api_key="sg-...")
message = client.messages.create(
    model="gemma2", max_tokens=100, messages=[{"role": "user", "content": "How do I bake bread?"}]
)
print(message.content[0].text)`,
    },
    { name: "Claude Code", lines: `export ANTHROPIC_BASE_URL=${url}\nexport ANTHROPIC_AUTH_TOKEN=sg-...` },
    {
      name: "LangChain",
      lines: `from langchain_openai import ChatOpenAI

llm = ChatOpenAI(base_url="${url}/v1", api_key="sg-...", model="gemma2")`,
    },
    {
      name: "LiteLLM's proxy, before this server",
      lines: `model_list:
  - model_name: gemma2
    litellm_params:
      model: openai/gemma2
      api_base: ${url}/v1
      api_key: sg-...`,
    },
    {
      name: "Open WebUI",
      about: "Among the models it lists the profiles of this server, too; chats need one of the model's.",
      lines: `docker run --add-host=host.docker.internal:host-gateway -p 3000:8080 \\
  -e OPENAI_API_BASE_URL=${url}/v1 -e OPENAI_API_KEY=sg-... \\
  ghcr.io/open-webui/open-webui:main`,
    },
  ]],
  ["Be the guard of another gateway", "The gateway stays where it is, and asks this server for verdicts. What a request names adds to the profile of its key.", [
    {
      name: "LiteLLM",
      about: "mode has to list pre_call, because a reply comes without its prompt.",
      lines: `guardrails:
- guardrail_name: shieldgate
  litellm_params:
    guardrail: generic_guardrail_api
    mode: [pre_call, post_call]
    api_base: ${url}
    api_key: sg-...
    default_on: true
    unreachable_fallback: fail_closed
    streaming_transform_mode: incremental_diff
    additional_provider_specific_params: {profile: strict}`,
    },
    {
      name: "NeMo Guardrails",
      about: "blocked_labels has to list every policy of the profile. NeMo sends a key over HTTPS only.",
      lines: `rails:
  config:
    hf_classifier:
      guard:
        engine: fms               # or vllm
        model: default            # vllm: a profile to add
        base_url: ${url}
        api_key_env_var: SHIELDGATE_KEY
        threshold: 0.5
        blocked_labels: [shieldgemma/dangerous, shieldgemma/harassment, shieldgemma/hate, shieldgemma/sexual, unscreenable]
  input:
    flows: ["hf classifier check input $classifier=guard"]
  output:
    flows: ["hf classifier check output $classifier=guard"]`,
    },
    {
      name: "FMS detectors, TrustyAI",
      about: "In the orchestrator's configuration.",
      lines: `detectors:
  shieldgate:
    type: text_contents           # or text_chat, text_generation, text_context_doc
    service: {hostname: ${hostname}, port: ${port}}
    chunker_id: whole_doc_chunker
    default_threshold: 0.5        # the threshold of the profile`,
    },
    {
      name: "Azure AI Content Safety's clients",
      about: "A severity of 2 and more is a violation.",
      lines: `ContentSafetyClient("${url}", AzureKeyCredential("sg-...")).analyze_text(...)`,
    },
    {
      name: "Portkey",
      about: "A guardrail of the kind Webhook, before and after requests; set deny. Its URL, then its headers:",
      lines: `${url}/v1/guards/portkey
{"Authorization": "Bearer sg-..."}`,
    },
    {
      name: "LiteLLM's decision_model",
      about: "The thresholds are LiteLLM's: give those that the answers here have beside each policy.",
      lines: `model_list:
  - model_name: shieldgate
    litellm_params:
      model: openai/default            # a profile; hosted_vllm/default asks /v1/systemone
      api_base: ${url}  # without /v1
      api_key: sg-...                  # a key of ours; any word where there are none
guardrails:
  - guardrail_name: shieldgate
    litellm_params:
      guardrail: decision_model
      mode: [pre_call, post_call]
      default_on: true
      decision_model: shieldgate
      unreachable_fallback: fail_closed
      checks:                          # their names are policies; answers have the thresholds
        - {name: shieldgemma/harassment, instructions: as the policy says, threshold: 0.6}
        - {name: shieldgemma/dangerous, instructions: as the policy says, threshold: 0.88}`,
    },
    {
      name: "agentgateway",
      lines: `promptGuard:
  request:
  - webhook: {target: {host: "${host}"}}
  response:
  - webhook: {target: {host: "${host}"}}`,
    },
    {
      name: "What asks Llama Guard by chat",
      about: "This base URL; chats there answer safe, or unsafe and the policies.",
      lines: `${url}/v1/guards`,
    },
    {
      name: "Kong (Enterprise), AI Custom Guardrail",
      lines: `config:
  guarding_mode: BOTH
  request:
    url: ${url}/v1/moderations
    headers: {authorization: "Bearer sg-..."}
    body: {input: "$(content)"}
  response:
    block: "$(resp.results[1].flagged)"`,
    },
  ]],
  ["Watch it", "", [
    {
      name: "Prometheus",
      about: "Takes a key with admin: true, where there are keys.",
      lines: `scrape_configs:
  - job_name: shieldgate
    authorization: {credentials: sg-...}
    static_configs:
      - targets: ["${host}"]`,
    },
  ]],
];
