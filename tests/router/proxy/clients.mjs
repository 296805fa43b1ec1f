// The openai npm package through the proxy; run by test_clients.py, which gives it its input and looks at the upstream.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const given = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: given.base_url, apiKey: "sk-none", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const chat = (options) => client.chat.completions.create({ model: "ada-1", messages: user("Who?"), ...options });
const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };

assert.equal((await chat()).choices[0].message.content, given.said);
assert.equal((await client.responses.create({ model: "ada-1", input: "Who?" })).output_text, given.said);
assert.deepEqual((await client.embeddings.create({ model: "ada-1", input: "a" })).data[0].embedding, [0.25, -0.5, 1]);
assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["ada-1"]);

let said = "";
for await (const chunk of await chat({ stream: true })) said += chunk.choices[0].delta.content ?? "";
assert.equal(said, given.said);
const events = client.responses.stream({ model: "ada-1", input: "Who?" });
assert.equal((await events.finalResponse()).output_text, given.said);

const tools = [{ type: "function", function: { name: "weather", parameters } }];
const streamed = client.chat.completions.stream({ model: "ada-1", messages: user("Weather?"), tools });
const [call] = (await streamed.finalChatCompletion()).choices[0].message.tool_calls;
assert.deepEqual(JSON.parse(call.function.arguments), { place: "Ulm" });

const response_format = { type: "json_schema", json_schema: { name: "author", schema: parameters } };
assert.equal((await chat({ response_format })).choices[0].message.content, given.json);

const url = `data:image/png;base64,${given.pixel}`;
await chat({ messages: user([{ type: "image_url", image_url: { url } }, { type: "text", text: "What is this?" }]) });

const errors = { 400: OpenAI.BadRequestError, 401: OpenAI.AuthenticationError, 429: OpenAI.RateLimitError };
for (const [status, kind] of Object.entries(errors)) {
  await assert.rejects(chat({ model: `status-${status}` }), (error) => {
    assert(error instanceof kind);
    assert.match(error.message, new RegExp(`scripted ${status}`));
    return true;
  });
}
const patient = new OpenAI({ baseURL: given.base_url, apiKey: "sk-none", maxRetries: 1 });
for (const model of ["once-429", "once-500"]) {
  const { choices } = await patient.chat.completions.create({ model, messages: user("Who?") });
  assert.equal(choices[0].message.content, given.said);
}
await assert.rejects(
  client.chat.completions.create({ model: "hangs", messages: user("Who?") }, { timeout: 1000 }),
  OpenAI.APIConnectionTimeoutError,
);
for await (const chunk of await chat({ model: "stalls", stream: true })) {
  assert.equal(chunk.choices[0].delta.role, "assistant");
  break; // leaves the stream, which aborts the request
}

const long = await chat({ messages: user(given.long), response_format }).withResponse();
assert.equal(long.data.choices[0].message.content, given.json);
assert.equal(long.response.headers.get("x-longroute-strategy"), "rag");
const response = await client.responses.create({ model: "ada-1", input: given.long, store: false }).withResponse();
assert.equal(response.data.output_text, given.said);
assert.equal(response.response.headers.get("x-longroute-strategy"), "rag");

console.log("all hold");
