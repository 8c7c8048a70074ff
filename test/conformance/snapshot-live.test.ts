/** Images that a running QEMU has: what is said of them is of one moment, or refused. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { startQemuNbd } from '../support/nbd.ts';
import { runOk } from '../support/process.ts';
import { create, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import type { Cleanup } from '../support/temporary.ts';

/** qemu-nbd with an image open for writing. */
async function holder(t: Cleanup, path: string): Promise<(...commands: string[]) => Promise<unknown>> {
  const { url } = await startQemuNbd(t, path, 'qcow2');
  return (...commands) => runOk('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), url]);
}

async function image(t: Cleanup): Promise<string> {
  const path = await create(t, { size: 16 * MiB });
  await qemuIo(path, ['write -P 1 0 4M']);
  await qemuImg('snapshot', '-c', 'a', path);
  await qemuIo(path, ['write -P 2 1M 64k']);
  await qemuImg('snapshot', '-c', 'b', path);
  return path;
}

test('an image that QEMU writes is refused with its name, and read with -U, which says who writes', {
  skip: requires.qemuNbd(),
}, async (t) => {
  const path = await image(t);
  const say = await holder(t, path);
  for (const args of [['list'], ['usage'], ['tree'], ['diff', 'a']]) {
    const [command = '', ...rest] = args;
    const refused = await cli('snapshot', command, path, ...rest);
    assert.equal(refused.status, 1, command);
    assert.match(refused.stderr, /held by qemu-nbd \(pid \d+\), which writes it \(LOCKED\)\n.*-U/);
  }
  await say('write -P 3 2M 64k', 'flush');
  const usage = await cli('snapshot', 'usage', '-U', '--json', path);
  assert.equal(usage.status, 0, usage.stderr);
  assert.match(usage.stderr, /warning: .*qemu-nbd \(pid \d+\) writes to it: this is what the file holds now/);
  assert.equal(JSON.parse(usage.stdout)['damaged-references'], 0);
  const between = JSON.parse((await cli('snapshot', 'diff', '-q', '-U', '--json', path, 'a', 'b')).stdout);
  assert.deepEqual(between.extents, [{ start: MiB, length: 64 * KiB, from: 'data', to: 'data' }]);
  const since = JSON.parse((await cli('snapshot', 'diff', '-q', '-U', '--json', path, 'b')).stdout);
  assert.deepEqual(
    since.extents.map(({ start }: { start: number }) => start),
    [2 * MiB],
  );
});

test('while it is written to without a pause, what does not change is answered and the rest is right or refused', {
  skip: requires.qemuNbd(),
}, async (t) => {
  const path = await image(t);
  const say = await holder(t, path);
  let going = true;
  const writing = (async () => {
    for (let i = 0; going; i++) {
      await say(
        ...[0, 1, 2, 3].flatMap((k) => [`write -P ${1 + (i % 200)} ${((i * 4 + k) % 200) * 64}k 64k`, 'flush']),
      );
    }
  })();
  try {
    for (let i = 0; i < 3; i++) {
      const between = await cli('snapshot', 'diff', '-q', '-U', '--json', path, 'a', 'b');
      assert.equal(between.status, 0, between.stderr);
      assert.deepEqual(JSON.parse(between.stdout).extents, [
        { start: MiB, length: 64 * KiB, from: 'data', to: 'data' },
      ]);
      const usage = await cli('snapshot', 'usage', '-q', '-U', '--json', path);
      if (usage.status === 0) assert.equal(JSON.parse(usage.stdout)['damaged-references'], 0);
      else assert.match(usage.stderr, /writes to it all the time.* \(LOCKED\)\nPause the machine/);
    }
  } finally {
    going = false;
    await writing;
  }
});
