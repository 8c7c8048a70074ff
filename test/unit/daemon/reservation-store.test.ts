import assert from 'node:assert/strict';
import { readdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { defaultStateDirectory, reservationStore } from '../../../src/daemon/reservation-store.ts';
import type { ReservationState } from '../../../src/scsi/reservation-state.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const NONE: ReservationState = { generation: 1, persist: true, registrations: [], type: 0, holder: -1 };

test('the directory is made when there is something to keep, for its owner alone', async (t) => {
  const directory = join(await temporaryDirectory(t), 'a', 'state');
  const store = await reservationStore(directory, 'disk', 'one');
  assert.equal(store.initial, undefined);
  await assert.rejects(stat(directory), { code: 'ENOENT' });
  await store.save(NONE);
  assert.equal((await stat(directory)).mode & 0o777, 0o700);
  assert.notEqual((await reservationStore(directory, 'disk', 'one')).initial, undefined);
});

test('two disks of one name have a file each', async (t) => {
  const directory = await temporaryDirectory(t);
  for (const identity of ['one', 'other']) await (await reservationStore(directory, 'disk', identity)).save(NONE);
  const files = await readdir(directory);
  assert.equal(files.length, 2);
  for (const name of files) assert.match(name, /^reservations-disk-[0-9a-f]{12}\.json$/);
});

test('a file that cannot be understood is not taken for no reservations', async (t) => {
  const directory = await temporaryDirectory(t);
  await (await reservationStore(directory, 'disk', 'one')).save(NONE);
  const [file] = await readdir(directory);
  await writeFile(join(directory, file as string), 'not json');
  await assert.rejects(reservationStore(directory, 'disk', 'one'), { code: 'CORRUPT' });
});

test('a file where the directory should be is an error at the start', async (t) => {
  const file = join(await temporaryDirectory(t), 'file');
  await writeFile(file, '');
  const store = await reservationStore(join(file, 'state'), 'disk', 'one').catch((error: { code: string }) => error);
  assert.equal((store as { code?: string }).code, 'NOT_FOUND');
});

test('state goes to the system’s place for root, else to the user’s', () => {
  assert.equal(defaultStateDirectory({ HOME: '/home/guest' }, true), '/var/lib/lunette');
  assert.equal(defaultStateDirectory({ HOME: '/home/guest' }, false), '/home/guest/.local/state/lunette');
  assert.equal(defaultStateDirectory({ HOME: '/h', XDG_STATE_HOME: '/s' }, false), '/s/lunette');
  assert.equal(defaultStateDirectory({ HOME: '/h', XDG_STATE_HOME: 'relative' }, false), '/h/.local/state/lunette');
  assert.equal(defaultStateDirectory({}, false), undefined);
});
