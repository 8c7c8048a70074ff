import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseVmsd, parseVmxDisks } from '../../../../formats/vmdk/vmsd.ts';

const VMSD = `.encoding = "UTF-8"
snapshot.lastUID = "3"
snapshot.current = "3"
snapshot0.uid = "1"
snapshot0.filename = "vm-Snapshot1.vmsn"
snapshot0.displayName = "before |22update|22"
snapshot0.description = "two|0Alines"
snapshot0.createTimeHigh = "395000"
snapshot0.createTimeLow = "-1530494976"
snapshot0.numDisks = "1"
snapshot0.disk0.fileName = "vm.vmdk"
snapshot0.disk0.node = "scsi0:0"
snapshot1.uid = "3"
snapshot1.parent = "1"
snapshot1.displayName = "größer"
snapshot1.numDisks = "2"
snapshot1.disk0.fileName = "vm-000001.vmdk"
snapshot1.disk0.node = "scsi0:0"
snapshot1.disk1.fileName = "data.vmdk"
snapshot1.disk1.node = "scsi0:1"
snapshot.numSnapshots = "2"
`;

test('snapshots have their parents, names, times and the disks that they froze', () => {
  const { current, snapshots } = parseVmsd(Buffer.from(VMSD), '/vm/vm.vmsd');
  assert.equal(current, '3');
  const [first, second] = snapshots;
  assert.equal(first?.name, 'before "update"');
  assert.equal(first?.description, 'two\nlines');
  assert.equal(first?.parent, undefined);
  assert.deepEqual(first?.disks, [{ fileName: 'vm.vmdk', node: 'scsi0:0' }]);
  assert.equal(second?.name, 'größer');
  assert.equal(second?.parent, '1');
  assert.equal(second?.createdMs, undefined);
  assert.deepEqual(
    second?.disks.map(({ fileName }) => fileName),
    ['vm-000001.vmdk', 'data.vmdk'],
  );
});

test('the low half of a time is signed: it counts as the 32 bits that it stands for', () => {
  const { snapshots } = parseVmsd(Buffer.from(VMSD), '/vm/vm.vmsd');
  const microseconds = 395000n * 2n ** 32n + (2n ** 32n - 1530494976n);
  assert.equal(snapshots[0]?.createdMs, Number(microseconds / 1000n));
  assert.equal(new Date(snapshots[0]?.createdMs ?? 0).getUTCFullYear(), 2023);
});

test('other encodings, gaps in the numbers and a count that is wrong are taken', () => {
  const text =
    '.encoding = "windows-1252"\r\nsnapshot.numSnapshots = "1"\r\nsnapshot2.uid = "7"\r\nsnapshot2.displayName = "gr\xf6\xdfer"\r\n';
  const { snapshots, current } = parseVmsd(Buffer.from(text, 'latin1'), '/x');
  assert.deepEqual(
    snapshots.map(({ uid, name }) => [uid, name]),
    [['7', 'größer']],
  );
  assert.equal(current, undefined);
});

test('what is no list of snapshots has none; counts do not make loops', () => {
  assert.deepEqual(parseVmsd(Buffer.from('hello'), '/x'), { current: undefined, snapshots: [] });
  assert.deepEqual(parseVmsd(Buffer.from('snapshot.numSnapshots = "999999"'), '/x').snapshots, []);
  const many = 'snapshot0.uid = "1"\nsnapshot0.numDisks = "999999"\n';
  assert.deepEqual(parseVmsd(Buffer.from(many), '/x').snapshots[0]?.disks, []);
  assert.throws(() => parseVmsd(new Uint8Array(5 * 2 ** 20), '/x'), { code: 'TOO_LARGE' });
});

test('the machine’s settings say which disks it runs on', () => {
  const vmx =
    'scsi0:0.fileName = "vm-000002.vmdk"\nscsi0:0.present = "TRUE"\nide1:0.fileName = "cd.iso"\nscsi0:1.fileName = "old.vmdk"\nscsi0:1.present = "FALSE"\nnvme0:0.filename = "n.vmdk"\n';
  assert.deepEqual(parseVmxDisks(Buffer.from(vmx), '/x'), [
    { node: 'scsi0:0', fileName: 'vm-000002.vmdk' },
    { node: 'nvme0:0', fileName: 'n.vmdk' },
  ]);
});
