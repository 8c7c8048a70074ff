/** The bridge: formats that QEMU only reads, its protocols, and what the bridge does not do. */

import assert from 'node:assert/strict';
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openBridge } from '../../../src/qemu/bridge.ts';
import { bochsImage, cloopImage, dmgImage } from '../../support/foreign-images.ts';
import { runLunette } from '../../support/lunette-export.ts';
import { startNbdExport } from '../../support/nbd.ts';
import { qemu } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { findProgram, requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const needs = requires.qemuNbd() || requires.linux();

for (const [format, make] of [
  ['dmg', dmgImage],
  ['cloop', cloopImage],
  ['bochs', bochsImage],
] as const) {
  test(`${format}: info, convert, compare and export through the bridge are what was put in; it is not written to`, {
    skip: needs,
  }, async (t) => {
    const folder = await temporaryDirectory(t);
    const disk = Buffer.alloc(4 * MiB);
    disk.set(new Random(7).bytes(700_000), 300_000);
    disk.fill('text ', 3 * MiB, 3 * MiB + 100_000);
    const [file, raw, copy] = ['image', 'disk.raw', 'copy.qcow2'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    await writeFile(file, make(disk));
    await writeFile(raw, disk);
    const url = `qemu:${format}:${file}`;
    const info = await runLunette(['info', '--json', url]);
    const facts = JSON.parse(info.stdout) as Record<string, unknown>;
    assert.deepEqual([facts.format, facts['virtual-size']], [format, disk.length], info.stderr);
    assert.match(JSON.stringify(facts), /"bridge":"qemu-nbd"/);
    const converted = await runLunette(['convert', '-O', 'qcow2', url, copy]);
    assert.equal(converted.status, 0, converted.stderr);
    assert.ok(await qemu.compare(copy, raw, '-f', 'qcow2', '-F', 'raw'));
    const compared = await runLunette(['compare', '-F', 'raw', url, raw]);
    assert.equal(compared.status, 0, compared.stderr);
    const served = await startNbdExport(t, url, { args: ['--socket', '', '--read-only'] });
    assert.ok(await qemu.compare(served.url, raw, '-f', 'raw', '-F', 'raw'));
    await served.process.stop();
    assert.ok((await readFile(file)).equals(make(disk)));
  });
}

test('an overlay on the bridge is refused before anything is started, and says what to do instead', {
  skip: needs,
}, async (t) => {
  const file = await qemu.create(t, { format: 'vpc', size: 8 * MiB });
  for (const args of [['--ephemeral'], ['--overlay', join(await temporaryDirectory(t), 'o.qcow2')]]) {
    const { status, stderr } = await runLunette(['export', '--transport', 'nbd', ...args, `qemu:vpc:${file}`]);
    assert.equal(status, 1);
    assert.match(stderr, /an overlay on what another program opens cannot be served \(UNSUPPORTED\)\n.*convert/s);
  }
});

test('names of protocols reach qemu-nbd as they are, each one argument, with format, secret and read-only', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [program, log, secret] = ['qemu-nbd', 'log', 'se,cret'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  // Notes what it is told, and gives up as one does that finds nothing there.
  await writeFile(
    program,
    `#!/bin/sh\n[ "$1" = -V ] && exec ${findProgram('qemu-nbd')} -V\nprintf '%s\\n' "$@" >> ${log}\necho "qemu-nbd: Connection refused" >&2\nexit 1\n`,
  );
  await chmod(program, 0o755);
  await writeFile(secret, 'x');
  const told = async (url: string, options: object = {}): Promise<string[]> => {
    await writeFile(log, '');
    await assert.rejects(openBridge(url, { readOnly: true, program, ...options }), {
      code: 'IO',
      message: /Connection refused/,
    });
    return (await readFile(log, 'utf8')).trim().split('\n');
  };
  for (const name of [
    'rbd:pool/image:id=admin:conf=/etc/ceph/a b.conf',
    'gluster+unix:///volume/a.img?socket=/run/g',
    'gluster://host:24007/volume/dir/a,b.img',
    'ssh://user@host:2222/dir/disk.qcow2?host_key_check=no',
    'nfs://host/export/disk.raw',
  ]) {
    const args = await told(`qemu:${name}`, { format: 'qcow2' });
    assert.deepEqual(args.slice(-3), ['--format=qcow2', '--', name]);
    assert.ok(args.includes('--read-only'));
    assert.ok(!(await told(`qemu:${name}`, { readOnly: false })).includes('--read-only'));
  }
  const json = '{"driver":"luks","key-secret":"lunette","file":{"driver":"rbd","pool":"p","image":"i"}}';
  const args = await told(`qemu:json:${json}`, { secretFile: secret });
  assert.deepEqual(args.slice(-2), ['--', `json:${json}`]);
  assert.equal(args[args.indexOf('--object') + 1], `secret,id=lunette,file=${secret.replace(',', ',,')}`);
});

test('a protocol whose other end is not there is an error in words, within seconds', { skip: needs }, async () => {
  const { status, stderr } = await runLunette(['info', 'qemu:ssh://nobody@127.0.0.1:9/disk.raw']);
  assert.equal(status, 1);
  assert.match(stderr, /^lunette: qemu:ssh:.*qemu-nbd: .*\n/);
});
