import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findDisk, parseVbox } from '../../../../formats/vdi/vbox.ts';

const MACHINE = `<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{11111111-1111-4111-8111-111111111111}" name="web &amp; mail" currentSnapshot="{AAAAAAAA-1111-4111-8111-111111111112}" snapshotFolder="Snapshots">
    <MediaRegistry>
      <HardDisks>
        <HardDisk uuid="{22222222-1111-4111-8111-111111111111}" location="disk.vdi" format="VDI" type="Normal">
          <HardDisk uuid="{33333333-1111-4111-8111-111111111111}" location="Snapshots/{33333333-1111-4111-8111-111111111111}.vdi" format="VDI"/>
        </HardDisk>
        <HardDisk uuid="{44444444-1111-4111-8111-111111111111}" location="data.vmdk" format="VMDK" type="Normal"/>
      </HardDisks>
    </MediaRegistry>
    <Snapshot uuid="{aaaaaaaa-1111-4111-8111-111111111111}" name="before &#xFC;pdate" timeStamp="2024-03-01T10:00:00Z">
      <Description>two
lines</Description>
      <Hardware>
        <StorageControllers>
          <StorageController name="SATA">
            <AttachedDevice type="HardDisk" port="0"><Image uuid="{22222222-1111-4111-8111-111111111111}"/></AttachedDevice>
            <AttachedDevice type="DVD" port="1"><Image uuid="{99999999-1111-4111-8111-111111111111}"/></AttachedDevice>
          </StorageController>
        </StorageControllers>
      </Hardware>
      <Snapshots>
        <Snapshot uuid="{aaaaaaaa-1111-4111-8111-111111111112}" name="second" timeStamp="2024-03-02T10:00:00Z">
          <StorageControllers>
            <StorageController name="SATA">
              <AttachedDevice type="HardDisk"><Image uuid="{33333333-1111-4111-8111-111111111111}"/></AttachedDevice>
            </StorageController>
          </StorageControllers>
        </Snapshot>
      </Snapshots>
    </Snapshot>
    <Hardware>
      <StorageControllers>
        <StorageController name="SATA">
          <AttachedDevice type="HardDisk" port="0"><Image uuid="{44444444-1111-4111-8111-111111111111}"/></AttachedDevice>
        </StorageController>
      </StorageControllers>
    </Hardware>
  </Machine>
</VirtualBox>`;

test('a .vbox file gives the tree of disks, the tree of snapshots and the active leaves', async () => {
  const machine = await parseVbox(MACHINE, '/vm/web.vbox');
  assert.equal(machine.name, 'web & mail');
  assert.equal(machine.currentSnapshot, 'aaaaaaaa-1111-4111-8111-111111111112');
  assert.deepEqual(machine.attached, ['44444444-1111-4111-8111-111111111111']);
  assert.deepEqual(
    machine.disks.map((disk) => [disk.location, disk.format, disk.type, disk.children.length]),
    [
      ['disk.vdi', 'VDI', 'Normal', 1],
      ['data.vmdk', 'VMDK', 'Normal', 0],
    ],
  );
  const [first] = machine.snapshots;
  assert.equal(first?.name, 'before üpdate');
  assert.equal(first?.description, 'two\nlines');
  assert.equal(first?.timeStamp, '2024-03-01T10:00:00Z');
  assert.deepEqual(first?.disks, ['22222222-1111-4111-8111-111111111111']);
  assert.deepEqual(first?.children[0]?.disks, ['33333333-1111-4111-8111-111111111111']);
  assert.equal(findDisk(machine.disks, '33333333-1111-4111-8111-111111111111')?.format, 'VDI');
  assert.equal(findDisk(machine.disks, '55555555-1111-4111-8111-111111111111'), undefined);
});

test('what is no settings file is refused', async () => {
  await assert.rejects(parseVbox('<Other/>', '/x'), { code: 'BAD_MAGIC', path: '/x' });
  await assert.rejects(parseVbox('', '/x'), { code: 'BAD_MAGIC' });
  await assert.rejects(parseVbox('<VirtualBox><Machine', '/x'), { code: /BAD_(HEADER|MAGIC)/ });
});

test('entities of its own, deep nesting and huge numbers of elements are refused before they are read', async () => {
  const bomb =
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><VirtualBox><Machine name="&b;"/></VirtualBox>';
  await assert.rejects(parseVbox(bomb, '/x'), { code: 'UNSUPPORTED' });
  await assert.rejects(parseVbox('<HardDisk>'.repeat(2000), '/x'), { code: 'TOO_LARGE' });
  await assert.rejects(parseVbox('<a/>'.repeat(200_000), '/x'), { code: 'TOO_LARGE' });
  await assert.rejects(parseVbox(' '.repeat(17 * 2 ** 20), '/x'), { code: 'TOO_LARGE' });
});
