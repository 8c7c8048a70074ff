/** `lunette snapshot` beside qemu-img's: each sees what the other did, and the short forms follow the same rules. */

import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import { createVdi } from '../../formats/vdi/create.ts';
import { createVmdk } from '../../formats/vmdk/create.ts';
import { cli } from '../support/cli.ts';
import { assertClean, compare, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

async function okCli(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await cli(...args);
  assert.equal(status, 0, stderr);
  return stdout;
}

/** Two snapshots, 1 (first) and 2 (1), whose disks begin with bytes of 1 and of 2; the live disk's are 3. */
async function ambiguous(t: Cleanup): Promise<string> {
  const path = await create(t, { size: 4 * MiB });
  await qemuIo(path, ['write -P 1 0 128k']);
  await qemuImg('snapshot', '-c', 'first', path);
  await qemuIo(path, ['write -P 2 0 128k']);
  await qemuImg('snapshot', '-c', '1', path);
  await qemuIo(path, ['write -P 3 0 128k']);
  return path;
}

async function ids(path: string): Promise<string[]> {
  const snapshots = ((await info(path)).snapshots ?? []) as { id: string }[];
  return snapshots.map(({ id }) => id);
}

test('list prints what qemu-img prints, and its JSON what info has', { skip: requires.qemuIo() }, async (t) => {
  const path = await ambiguous(t);
  const text = await qemuImg('snapshot', '-l', path);
  assert.equal(await okCli('snapshot', 'list', path), text);
  assert.equal(await okCli('snapshot', '-l', path), text);
  assert.deepEqual(JSON.parse(await okCli('snapshot', 'list', '--json', path)), (await info(path)).snapshots);
  const none = await create(t, { size: MiB });
  assert.equal(await okCli('snapshot', 'list', none), '');
  assert.deepEqual(JSON.parse(await okCli('snapshot', '--json', 'list', none)), []);
});

test('what create, apply and delete make is what QEMU sees', { skip: requires.qemuIo() }, async (t) => {
  const path = await create(t, { size: 4 * MiB });
  await qemuIo(path, ['write -P 1 0 1M']);
  assert.equal(await okCli('snapshot', 'create', path, 'böse "Namen"'), 'snapshot 1 (böse "Namen")\n');
  const copy = join(await temporaryDirectory(t), 'then.raw');
  await qemuImg('convert', '-O', 'raw', path, copy);
  await qemuIo(path, ['write -P 2 512k 1M']);
  assert.equal(JSON.parse(await okCli('snapshot', 'create', '--json', path, 'second')).id, '2');
  assert.deepEqual(await ids(path), ['1', '2']);
  await assertClean(path);
  await okCli('snapshot', 'apply', path, 'böse "Namen"');
  assert.ok(await compare(path, copy));
  await okCli('snapshot', 'delete', path, '2');
  assert.deepEqual(await ids(path), ['1']);
  assert.equal(await okCli('snapshot', '-c', 'quiet', path), '');
  assert.deepEqual(await ids(path), ['1', '2']);
  await assertClean(path);
});

test('a snapshot that could be one of two is refused unless --id or --name says which', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await ambiguous(t);
  for (const command of ['apply', 'delete', 'show']) {
    const { status, stderr } = await cli('snapshot', command, path, '1');
    assert.equal(status, 2);
    assert.match(
      stderr,
      /"1" is the snapshots 1 \(first\), 2 \(1\) \(USAGE\)\nSay --id for 1 \(first\), or --name for 2 \(1\)\.\n/,
    );
  }
  await okCli('snapshot', 'apply', '--name', path, '1');
  await qemuIo(path, ['read -P 2 0 128k']);
  await okCli('snapshot', 'apply', path, '--id', '1');
  await qemuIo(path, ['read -P 1 0 128k']);
  await okCli('snapshot', 'delete', '--id', path, '1');
  assert.deepEqual(await ids(path), ['2']);
  assert.match(
    (await cli('snapshot', 'delete', '--id', path, '7')).stderr,
    /no snapshot with the id "7" .*\nSnapshots: 2 \(1\)/,
  );
  const twice = await create(t, { size: MiB });
  for (let i = 0; i < 2; i++) await qemuImg('snapshot', '-c', 'same', twice);
  assert.match((await cli('snapshot', 'delete', '--name', twice, 'same')).stderr, /--id 1 or --id 2\.$/m);
});

test('-a and -d take what qemu-img takes, and say so when it was ambiguous', { skip: requires.qemuIo() }, async (t) => {
  const [ours, theirs] = [await ambiguous(t), await ambiguous(t)];
  const applied = await cli('snapshot', '-a', '1', ours);
  assert.match(
    applied.stderr,
    /^lunette: warning: .*"1" fits the snapshots 1 \(first\), 2 \(1\); applied is 1 \(first\)/,
  );
  await qemuImg('snapshot', '-a', '1', theirs);
  assert.ok(await compare(ours, theirs));
  const deleted = await cli('snapshot', '-d', '1', ours);
  assert.match(deleted.stderr, /deleted is 2 \(1\)/);
  await qemuImg('snapshot', '-d', '1', theirs);
  assert.deepEqual(await ids(ours), await ids(theirs));
  // qemu-img takes no id here either.
  const { status, stderr } = await cli('snapshot', '-q', '-d', '1', ours);
  assert.equal(status, 1);
  assert.match(stderr, /no snapshot named "1".*\n.*delete --id/);
  await assert.rejects(qemuImg('snapshot', '-d', '1', theirs));
});

test('snapshots are not changed while a program has the image, nor without locks', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await ambiguous(t);
  const { status, stderr } = await cli('snapshot', '-U', 'delete', path, 'first');
  assert.equal(status, 2);
  assert.match(stderr, /without locking/);
  assert.equal((await cli('snapshot', '-c', 'a', '-d', 'b', path)).status, 2);
  assert.equal((await cli('snapshot', '-l')).status, 2);
});

test('usage, show and tree agree with each other, in text and in JSON', { skip: requires.qemuIo() }, async (t) => {
  const path = await ambiguous(t);
  const usage = JSON.parse(await okCli('snapshot', 'usage', '--json', path));
  assert.equal(usage.snapshots.length, 2);
  const sum = usage.snapshots.reduce(
    (all: number, each: { exclusive: number }) => all + each.exclusive,
    usage.live.exclusive,
  );
  assert.equal(usage.metadata + usage.shared + sum + usage.leaked, usage.used);
  assert.deepEqual(JSON.parse(await okCli('snapshot', 'show', '--json', path, 'first')), usage.snapshots[0]);
  assert.match(await okCli('snapshot', 'show', path, 'first'), /^freed if deleted: .* \(\d+ bytes\)$/m);
  const text = await okCli('snapshot', 'usage', path);
  for (const line of text.split('\n')) assert.ok(line.length <= 80, line);
  assert.match(text, new RegExp(`^used +\\S+ \\S+ +${usage.used}$`, 'm'));
  const overlay = await create(t, { backing: path });
  assert.match(
    await okCli('snapshot', 'tree', '--allow-any', overlay),
    /^.*disk\.qcow2 \(qcow2, 4 MiB, .+ on disk\)\n└─ .*disk\.qcow2 \(qcow2.*\)\n {3}├─ snapshot 1 first, .*\n {3}└─ snapshot 2 1, /,
  );
});

test('the snapshots of a VMware machine are listed with the files that hold them', async (t) => {
  const folder = await temporaryDirectory(t);
  for (const name of ['vm.vmdk', 'vm-000001.vmdk']) {
    await createVmdk(await openFileStorageFor(join(folder, name)), { size: MiB });
  }
  await writeFile(
    join(folder, 'vm.vmsd'),
    '.encoding = "UTF-8"\nsnapshot.current = "1"\nsnapshot0.uid = "1"\nsnapshot0.displayName = "clean |0A\x1b[31minstall"\n' +
      'snapshot0.createTimeHigh = "395000"\nsnapshot0.createTimeLow = "-1530494976"\nsnapshot0.numDisks = "1"\n' +
      'snapshot0.disk0.fileName = "vm.vmdk"\nsnapshot0.disk0.node = "scsi0:0"\nsnapshot.numSnapshots = "1"\n',
  );
  await writeFile(join(folder, 'vm.vmx'), 'scsi0:0.present = "TRUE"\nscsi0:0.fileName = "vm-000001.vmdk"\n');
  for (const image of ['vm.vmdk', 'vm-000001.vmdk', 'vm.vmsd', 'vm.vmx']) {
    const text = await okCli('snapshot', 'list', join(folder, image));
    assert.match(
      text,
      /^vm \(VMware machine, .*\)\nID +SNAPSHOT +DATE +FILES\n1 +clean \\x1b\[31minstall +2023-.* vm\.vmdk\n +└─ \(now\) +vm-000001\.vmdk\n$/,
    );
  }
  const json = JSON.parse(await okCli('snapshot', 'list', '--json', join(folder, 'vm.vmdk')));
  assert.deepEqual(json['live-files'], [join(folder, 'vm-000001.vmdk')]);
  assert.equal(json.snapshots[0].name, 'clean \n\x1b[31minstall');
  const { status, stderr } = await cli('snapshot', 'create', join(folder, 'vm.vmdk'), 'x');
  assert.equal(status, 1);
  assert.match(stderr, /no internal snapshots \(UNSUPPORTED\)/);
});

test('the snapshots of a VirtualBox machine are listed from any of its disks', async (t) => {
  const folder = await temporaryDirectory(t);
  await mkdir(join(folder, 'Snapshots'));
  const child = '{22222222-2222-4222-8222-222222222222}.vdi';
  for (const name of ['base.vdi', join('Snapshots', child)]) {
    await createVdi(await openFileStorageFor(join(folder, name)), { size: MiB });
  }
  await writeFile(
    join(folder, 'vm.vbox'),
    `<?xml version="1.0"?><VirtualBox xmlns="http://www.virtualbox.org/"><Machine uuid="{33333333-3333-4333-8333-333333333333}"
  name="vm &amp; co" currentSnapshot="{44444444-4444-4444-8444-444444444444}" snapshotFolder="Snapshots"><MediaRegistry><HardDisks>
  <HardDisk uuid="{11111111-1111-4111-8111-111111111111}" location="base.vdi" format="VDI" type="Normal"><HardDisk
  uuid="{22222222-2222-4222-8222-222222222222}" location="Snapshots/${child}" format="VDI"/></HardDisk></HardDisks></MediaRegistry>
  <Snapshot uuid="{44444444-4444-4444-8444-444444444444}" name="first" timeStamp="2026-01-02T03:04:05Z"><Description>d</Description>
  <StorageControllers><StorageController><AttachedDevice type="HardDisk"><Image uuid="{11111111-1111-4111-8111-111111111111}"/></AttachedDevice>
  </StorageController></StorageControllers></Snapshot><StorageControllers><StorageController><AttachedDevice type="HardDisk"><Image
  uuid="{22222222-2222-4222-8222-222222222222}"/></AttachedDevice></StorageController></StorageControllers></Machine></VirtualBox>`,
  );
  for (const image of ['base.vdi', join('Snapshots', child), 'vm.vbox']) {
    const json = JSON.parse(await okCli('snapshot', 'list', '--json', join(folder, image)));
    assert.equal(json.name, 'vm & co');
    assert.deepEqual(json.snapshots[0].files, [join(folder, 'base.vdi')]);
    assert.equal(json.snapshots[0]['date-sec'], Date.parse('2026-01-02T03:04:05Z') / 1000);
    assert.deepEqual(json['live-files'], [join(folder, 'Snapshots', child)]);
  }
});

async function openFileStorageFor(path: string) {
  await writeFile(path, '');
  return openFileStorage(path, { readOnly: false });
}
