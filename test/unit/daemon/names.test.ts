import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IQN_PREFIX, nameOfFile, targetName, uniqueName } from '../../../src/daemon/names.ts';
import { checkTargetName } from '../../../src/iscsi/names.ts';

test('the name of a file loses its folder and its extension', () => {
  assert.equal(nameOfFile('/images/disk.qcow2'), 'disk');
  assert.equal(nameOfFile('vm-1.disk0.img'), 'vm-1.disk0');
  assert.equal(nameOfFile('disk'), 'disk');
});

test('whatever a file is called, a valid name comes out', () => {
  const names: [string, string][] = [
    ['Meine Platte (Kopie).QCOW2', 'meine-platte-kopie'],
    ['Zürich.raw', 'zurich'],
    ['...qcow2', 'disk'],
    ['磁盘.qcow2', 'disk'],
    ['a_b%c#d?e.raw', 'a-b-c-d-e'],
    ['x\n\x1b.raw', 'x'],
    [`${'n'.repeat(250)}.raw`, 'n'.repeat(190)],
  ];
  for (const [file, name] of names) {
    assert.equal(nameOfFile(file), name);
    assert.equal(checkTargetName(targetName(name)), IQN_PREFIX + name);
  }
});

test('names that are taken get a number', () => {
  const taken = new Set<string>();
  assert.deepEqual(
    ['disk', 'disk', 'disk', 'other'].map((name) => uniqueName(name, taken)),
    ['disk', 'disk-2', 'disk-3', 'other'],
  );
});

test('a whole iSCSI name is taken as it is, in lower case; others get the prefix', () => {
  assert.equal(targetName('iqn.2020-01.com.example:Disk'), 'iqn.2020-01.com.example:disk');
  assert.equal(targetName('naa.600140512345678a'), 'naa.600140512345678a');
  assert.equal(targetName('Data:1'), 'iqn.2026-11.lunette.host:data:1');
});

test('a name that is none, or that a URL would take apart, is refused', () => {
  for (const name of ['', 'a b', 'a/b', 'a%b', 'a?b', 'iqn.20-1.com:x', 'eui.123', 'é', 'x'.repeat(250)]) {
    assert.throws(() => targetName(name), { code: 'INVALID' }, name);
  }
});
