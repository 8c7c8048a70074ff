import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync, deflateSync } from 'node:zlib';
import { type DeflateForm, type Inflate, inflatePlain } from '../../../formats/core/inflate.ts';
import { inflateOn } from '../../../src/io/native-inflate.ts';
import { native } from '../../../src/native/binding.ts';
import { IoQueue } from '../../../src/native/io-queue.ts';
import { requireAddon } from '../../support/addon.ts';
import { randomFor } from '../../support/random.ts';

const skip = requireAddon() || (native?.operations.inflate === undefined && 'this Node keeps its zlib to itself');
const SIZE = 20_000;

/** What a stream comes to: the output, or undefined where there is none. Shows writes past the output. */
async function unpacked(inflate: Inflate, form: DeflateForm, stream: Uint8Array, size = SIZE) {
  const memory = new Uint8Array(size + 16).fill(0xa5);
  const done = await inflate(form, stream, memory.subarray(0, size));
  assert.ok(
    memory.subarray(size).every((byte) => byte === 0xa5),
    'nothing behind the output is touched',
  );
  return done === undefined ? undefined : memory.slice(0, done);
}

test('native code unpacks every stream as Node does: whole, cut anywhere, broken, followed by more', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const queue = new IoQueue({ threads: 2 });
  t.after(() => queue.close());
  const inflate = inflateOn(queue);
  const forms = ['raw-start', 'raw', 'zlib'] as const;
  const seen = { bytes: 0, nothing: 0 };
  for (let i = 0; i < 400; i++) {
    const content = random.bytes(random.pick([0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE]));
    for (let at = 0; at < content.length; at++) content[at] = (content[at] as number) & 7;
    const form = forms[i % 3] as DeflateForm;
    const windowBits = random.between(9, 15);
    let stream: Uint8Array = (form === 'zlib' ? deflateSync : deflateRawSync)(content, { windowBits });
    switch (random.below(4)) {
      case 0:
        stream = stream.subarray(0, random.below(stream.length + 1));
        break;
      case 1:
        stream[random.below(stream.length)]! ^= 1 << random.below(8);
        break;
      case 2:
        stream = Buffer.concat([stream, random.bytes(random.below(100))]);
        break;
      default:
    }
    const expected = await unpacked(inflatePlain, form, stream);
    assert.deepEqual(await unpacked(inflate, form, stream), expected, `${form}, ${windowBits} window bits, round ${i}`);
    if (expected === undefined) seen.nothing++;
    else seen.bytes++;
  }
  assert.ok(seen.nothing > 30 && seen.bytes > 100, JSON.stringify(seen));
});

test('streams that come together are unpacked side by side, each into its own output', { skip }, async (t) => {
  const queue = new IoQueue({ threads: 4 });
  t.after(() => queue.close());
  const inflate = inflateOn(queue);
  const contents = Array.from({ length: 100 }, (_, i) => new Uint8Array(1000 + i).fill(i));
  const outputs = await Promise.all(contents.map((content) => unpacked(inflate, 'raw', deflateRawSync(content))));
  assert.deepEqual(outputs, contents);
});
