// The official `openai` package, unchanged, against the real binary.
//
// The environment names the server: REGROUND_URL (base URL with /v1) and REGROUND_KEY; REGROUND_NARROW_URL is a second
// server whose queue holds one request; REGROUND_IMAGE is a PNG file.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import OpenAI from 'openai';

const { REGROUND_URL, REGROUND_NARROW_URL, REGROUND_KEY, REGROUND_IMAGE } = process.env;
const image = `data:image/png;base64,${readFileSync(REGROUND_IMAGE).toString('base64')}`;
// Forbids the end-of-turn token of the golden checkpoint, so that every answer is as long as it may be.
const endless = { 2: -100 };

const client = (baseURL = REGROUND_URL, apiKey = REGROUND_KEY) =>
  new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });
const said = (text = 'what color is the circle?') => [{ role: 'user', content: text }];
const question = { model: 'reground', messages: said(), max_tokens: 12, temperature: 0, logit_bias: endless };
const ask = (more = {}, caller = client()) => caller.chat.completions.create({ ...question, ...more });

test('text', async () => {
  const answer = await ask();
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, 'length');
  assert.equal(answer.usage.completion_tokens, 12);
  assert.equal(answer.system_fingerprint, 'base');
});

test('image', async () => {
  const text = { type: 'text', text: 'what is it?' };
  const seen = await ask({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: image } }, text] }] });
  const blind = await ask({ messages: [{ role: 'user', content: [text] }] });
  assert.ok(seen.usage.prompt_tokens > blind.usage.prompt_tokens);
  assert.notEqual(seen.choices[0].message.content, blind.choices[0].message.content);
});

test('stream with usage', async () => {
  const whole = await ask();
  const chunks = [];
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
});

test('stream helper', async () => {
  const runner = client().chat.completions.stream(question);
  const text = await runner.finalContent();
  assert.equal(text, (await ask()).choices[0].message.content);
});

test('a stream that is left is no error', async () => {
  for await (const chunk of await ask({ stream: true, max_tokens: 400 })) {
    assert.equal(chunk.object, 'chat.completion.chunk');
    break;
  }
});

test('log-probabilities', async () => {
  const { content } = (await ask({ logprobs: true, top_logprobs: 3 })).choices[0].logprobs;
  assert.ok(content.length > 0);
  for (const token of content) {
    assert.ok(token.logprob <= 0);
    assert.equal(token.top_logprobs.length, 3);
    assert.equal(Buffer.from(token.bytes).toString(), token.token);
  }
});

test('n and seed', async () => {
  const texts = async () => (await ask({ n: 3, seed: 7, temperature: 1.2 })).choices.map((choice) => choice.message.content);
  const first = await texts();
  assert.equal(new Set(first).size, 3);
  assert.deepEqual(await texts(), first);
});

test('stop', async () => {
  const whole = (await ask()).choices[0].message.content;
  const stop = [...whole.slice(2)].find((character) => !whole.slice(0, 2).includes(character) && character !== '\ufffd');
  const answer = await ask({ stop });
  assert.equal(answer.choices[0].message.content, whole.split(stop)[0]);
  assert.equal(answer.choices[0].finish_reason, 'stop');
});

test('json_schema', async () => {
  const schema = {
    type: 'object',
    properties: { color: { enum: ['red', 'green'] }, count: { enum: [1, 2, 3] }, round: { type: 'boolean' } },
    required: ['color', 'count', 'round'],
    additionalProperties: false,
  };
  const answer = await ask({
    response_format: { type: 'json_schema', json_schema: { name: 'thing', strict: true, schema } },
    max_tokens: 400,
    logit_bias: {},
  });
  assert.equal(answer.choices[0].finish_reason, 'stop');
  const thing = JSON.parse(answer.choices[0].message.content);
  assert.ok(['red', 'green'].includes(thing.color) && [1, 2, 3].includes(thing.count) && typeof thing.round === 'boolean');
});

test('models', async () => {
  const ids = [];
  for await (const model of client().models.list()) ids.push(model.id);
  assert.deepEqual(ids, ['reground', 'reground@base']);
  assert.equal((await client().models.retrieve('reground@base')).id, 'reground@base');
});

test('400 is BadRequestError', async () => {
  await assert.rejects(ask({ temperature: 7 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.status, error.param, error.code], [400, 'temperature', 'invalid_value']);
    return true;
  });
});

test('401 is AuthenticationError', async () => {
  await assert.rejects(ask({}, client(REGROUND_URL, 'sk-wrong')), OpenAI.AuthenticationError);
});

test('404 is NotFoundError', async () => {
  await assert.rejects(ask({ model: 'gpt-4o' }), OpenAI.NotFoundError);
  await assert.rejects(client().models.retrieve('gpt-4o'), OpenAI.NotFoundError);
});

test('429 is RateLimitError', async () => {
  const narrow = client(REGROUND_NARROW_URL);
  const results = await Promise.allSettled(Array.from({ length: 12 }, () => ask({ max_tokens: 600 }, narrow)));
  const errors = results.filter((result) => result.status === 'rejected').map((result) => result.reason);
  assert.ok(errors.length >= 1 && errors.length < 12, `${errors.length} of 12 refused`);
  for (const error of errors) {
    assert.ok(error instanceof OpenAI.RateLimitError, String(error));
    assert.ok(Number(error.headers.get('retry-after')) >= 1);
  }
});
