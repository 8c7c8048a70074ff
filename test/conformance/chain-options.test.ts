/** Parents that were changed or moved: every command that reads a disk says so, and goes on when it is told to. */

import assert from 'node:assert/strict';
import { mkdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { cli } from '../support/cli.ts';
import { qemu, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuImg() || requires.qemuIo();

/** A VMDK base of QEMU with a delta of QEMU that holds 2 at 1 MiB. */
async function delta(t: Cleanup): Promise<{ folder: string; base: string; child: string }> {
  const folder = await temporaryDirectory(t);
  const [base, child] = [join(folder, 'base.vmdk'), join(folder, 'child.vmdk')];
  await qemu.create(t, { path: base, format: 'vmdk', size: 4 << 20 });
  await qemu.create(t, { path: child, format: 'vmdk', backing: 'base.vmdk', backingFormat: 'vmdk' });
  await qemuIo(child, ['write -q -P 2 1M 64k'], '-f', 'vmdk');
  return { folder, base, child };
}

const COMMANDS: readonly ((child: string, out: string) => string[])[] = [
  (child) => ['checksum', child],
  (child) => ['map', child],
  (child) => ['measure', '-O', 'qcow2', child],
  (child, out) => ['convert', '-O', 'raw', child, out],
];

test('a base that was written since is refused with both ids by each command, and taken with --ignore-cid', {
  skip,
}, async (t) => {
  const { folder, base, child } = await delta(t);
  await qemuIo(base, ['write -q -P 1 0 64k'], '-f', 'vmdk');
  const out = join(folder, 'out.raw');
  for (const command of [...COMMANDS, (image: string) => ['compare', image, image]]) {
    const args = command(child, out);
    const refused = await cli(...args);
    assert.equal(refused.status, args[0] === 'compare' ? 2 : 1, args[0]);
    assert.match(refused.stderr, /child\.vmdk: it was made on a CID [0-9a-f]{8}, which has [0-9a-f]{8}: .*base\.vmdk/);
    assert.match(refused.stderr, /--ignore-cid/);
    const taken = await cli(...args, '--ignore-cid');
    assert.equal(taken.status, 0, `${args[0]}: ${taken.stderr}`);
    assert.match(taken.stderr, /was written since/, 'it goes on without a word');
  }
  await qemuIo(out, ['read -P 1 0 64k', 'read -P 2 1M 64k', 'read -P 0 2M 2M'], '-r', '-f', 'raw');
});

test('a base that was moved is found with --parent by each command', { skip }, async (t) => {
  const { folder, base, child } = await delta(t);
  await qemuIo(base, ['read -P 0 0 64k'], '-r', '-f', 'vmdk');
  await mkdir(join(folder, 'elsewhere'));
  const moved = join(folder, 'elsewhere', 'other-name.vmdk');
  await rename(base, moved);
  const out = join(folder, 'out.raw');
  for (const command of COMMANDS) {
    const args = command(child, out);
    const refused = await cli(...args);
    assert.equal(refused.status, 1, args[0]);
    assert.match(refused.stderr, /base\.vmdk is not there/);
    const taken = await cli(...args, '--parent', moved);
    assert.deepEqual([taken.status, taken.stderr], [0, ''], args[0]);
  }
  const committed = await cli('commit', '--parent', moved, child);
  assert.equal(committed.status, 0, committed.stderr);
  await qemuIo(moved, ['read -P 2 1M 64k'], '-r', '-f', 'vmdk');
});
