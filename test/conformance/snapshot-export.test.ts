/** Snapshots as images of their own, and as overlays: what QEMU reads of them is what it reads of the snapshot. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { assertClean, compare, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

async function okCli(...args: string[]): Promise<void> {
  const { status, stderr } = await cli(...args);
  assert.equal(status, 0, stderr);
}

function writes(random: Random, size: number): string[] {
  return Array.from({ length: random.between(2, 6) }, () => {
    const length = 512 * (1 + random.below(600));
    const at = 512 * random.below((size - length) / 512);
    const what = random.pick(['write -P', 'write -P', 'write -P', 'write -z', 'discard']);
    return `${what} ${what === 'write -P' ? `${1 + random.below(250)} ` : ''}${at} ${length}`;
  });
}

for (const { clusterSize, backing } of [
  { clusterSize: 4 * KiB, backing: false },
  { clusterSize: 64 * KiB, backing: true },
  { clusterSize: 256 * KiB, backing: false },
]) {
  test(`a base and the overlays since are the snapshots: clusters of ${clusterSize}${backing ? ', over a base' : ''}`, {
    skip: requires.qemuIo(),
  }, async (t) => {
    const random = randomFor(t);
    const directory = await temporaryDirectory(t);
    const file = (name: string): string => join(directory, name);
    let size = 8 * MiB;
    if (backing) await qemuIo(await create(t, { path: file('base.qcow2'), size }), writes(random, size));
    const path = await create(t, {
      path: file('disk.qcow2'),
      size,
      clusterSize,
      ...(backing ? { backing: file('base.qcow2') } : {}),
    });
    for (let i = 1; i <= 3; i++) {
      await qemuIo(path, writes(random, size), '-d', 'unmap');
      await qemuImg('snapshot', '-c', `day ${i}`, path);
      await qemuImg('convert', '-O', 'raw', path, file(`day${i}.raw`));
      if (i === 2) {
        size += MiB + 512;
        await qemuImg('resize', '-q', path, String(size));
      }
    }
    await qemuIo(path, writes(random, size), '-d', 'unmap');
    await okCli('snapshot', 'export', path, 'day 1', file('day1.qcow2'));
    await okCli('snapshot', 'export', path, 'day 2', file('day2.qcow2'), '--since', 'day 1', '-b', 'day1.qcow2');
    await okCli(
      'snapshot',
      'export',
      '--verify',
      path,
      'day 3',
      file('day3.qcow2'),
      '--since',
      'day 2',
      '-b',
      'day2.qcow2',
    );
    for (const i of [1, 2, 3]) {
      assert.ok(await compare(file(`day${i}.raw`), file(`day${i}.qcow2`), '-f', 'raw', '-F', 'qcow2'), `day ${i}`);
      assert.equal((await info(file(`day${i}.qcow2`)))['virtual-size'], (await stat(file(`day${i}.raw`))).size);
      await assertClean(file(`day${i}.qcow2`));
    }
    await okCli('snapshot', 'export', '-O', 'vmdk', path, 'day 2', file('day2.vmdk'));
    assert.ok(await compare(file('day2.vmdk'), file('day2.qcow2')));
  });
}

test('an overlay holds what changed, not the disk', { skip: requires.qemuIo() }, async (t) => {
  const directory = await temporaryDirectory(t);
  const path = await create(t, { size: 64 * MiB });
  await qemuIo(path, ['write -P 1 0 32M']);
  await qemuImg('snapshot', '-c', 'a', path);
  await qemuIo(path, ['write -P 2 4M 64k']);
  await qemuImg('snapshot', '-c', 'b', path);
  const [base, overlay] = [join(directory, 'a.qcow2'), join(directory, 'b.qcow2')];
  await okCli('snapshot', 'export', path, 'a', base);
  await okCli('snapshot', 'export', path, 'b', overlay, '--since', 'a', '-b', base, '-F', 'qcow2');
  assert.ok((await stat(overlay)).size <= 7 * 64 * KiB, String((await stat(overlay)).size));
  assert.equal((await info(overlay))['backing-filename'], base);
});

test('what an export lacks is said, and a base that holds something else is found by --verify', {
  skip: requires.qemuIo(),
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const path = await create(t, { size: 4 * MiB });
  for (const name of ['a', 'b']) {
    await qemuIo(path, [`write -P ${name === 'a' ? 1 : 2} 1M 64k`]);
    await qemuImg('snapshot', '-c', name, path);
  }
  const target = join(directory, 'out.qcow2');
  const since = await cli('snapshot', 'export', path, 'b', target, '--since', 'a');
  assert.equal(since.status, 2);
  assert.match(since.stderr, /Export that one first, lunette snapshot export IMAGE a BASE/);
  assert.equal((await cli('snapshot', 'export', path, 'b', target, '-b', 'x')).status, 2);
  assert.match(
    (await cli('snapshot', 'export', path, 'c', target)).stderr,
    /no snapshot "c" \(NOT_FOUND\)\nSnapshots: 1 \(a\), 2 \(b\)/,
  );
  const wrong = await create(t, { size: 4 * MiB });
  await qemuIo(wrong, ['write -P 9 3M 64k']);
  const verified = await cli(
    'snapshot',
    'export',
    '--verify',
    path,
    'b',
    target,
    '--since',
    'a',
    '-b',
    wrong,
    '--allow-any',
  );
  assert.equal(verified.status, 1);
  assert.match(verified.stderr, /differs/);
  assert.ok(!existsSync(target));
});
