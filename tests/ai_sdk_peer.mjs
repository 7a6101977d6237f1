// Asks by the AI SDK, as the programs in Python do by other clients (what_is_seen.py).

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const tools = {
  look_up: tool({
    description: "Look something up.",
    inputSchema: z.object({ q: z.string() }),
    execute: async ({ q }) => `${q} is baked`,
  }),
};
const stopWhen = stepCountIs(3);

async function whole(model, prompt, found) {
  const result = await generateText({ model, prompt, tools, stopWhen });
  found.shown = result.text;
  found.finish = result.finishReason;
}

async function streamed(model, prompt, found) {
  // At its default an error is written to the console, and the stream just ends.
  const onError = ({ error }) => (found.told = word(error));
  const result = streamText({ model, prompt, tools, stopWhen, onError });
  for await (const text of result.textStream) found.shown += text;
  found.finish = await result.finishReason;
}

async function structured(model, prompt, found) {
  const result = await generateObject({ model, prompt, schema: z.object({ kind: z.string() }) });
  found.shown = result.object.kind;
}

const word = (error) => `${error.name}: ${error.message}`;

async function seen(ask, model, prompt) {
  const found = { shown: "" };
  try {
    await ask(model, prompt, found);
  } catch (error) {
    found.raised = word(error);
  }
  return found;
}

const kinds = { "": whole, ", streamed": streamed, ", structured": structured };
const asked = [];
const answers = {};
for (const [url, prompts] of Object.entries(JSON.parse(process.argv.at(-1)))) {
  const openai = createOpenAI({ baseURL: url, apiKey: "caller" });
  const compatible = createOpenAICompatible({ name: "shieldgate", baseURL: url, apiKey: "caller" });
  const models = {
    chat: openai.chat("m"),
    responses: openai.responses("m"),
    compatible: compatible("m"),
  };
  answers[url] = {};
  for (const [api, model] of Object.entries(models)) {
    for (const [kind, ask] of Object.entries(kinds)) {
      const way = `${api}${kind}`;
      const found = (answers[url][way] = {});
      for (const [name, prompt] of Object.entries(prompts)) {
        asked.push(seen(ask, model, `${prompt} (${way})`).then((it) => (found[name] = it)));
      }
    }
  }
}
await Promise.all(asked);
console.log(JSON.stringify(answers));
