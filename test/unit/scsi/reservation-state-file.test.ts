import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ReservationState } from '../../../src/scsi/reservation-state.ts';
import { ReservationStateFile } from '../../../src/scsi/reservation-state-file.ts';
import { makeNexus } from '../../support/scsi.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

function state(persist = true): ReservationState {
  const { transportId, initiatorPort } = makeNexus();
  const registration = { port: initiatorPort, transportId, relativeTargetPort: 1, key: '0123456789abcdef' };
  return { generation: 9, persist, registrations: [registration], type: 5, holder: 0 };
}

test('what was saved is there when the file is opened again, with a generation that starts anew', async (t) => {
  const directory = await temporaryDirectory(t);
  const path = join(directory, 'disk.pr');
  const file = await ReservationStateFile.open(path);
  assert.equal(file.initial, undefined);
  await file.save(state());
  const again = await ReservationStateFile.open(path);
  assert.deepEqual(again.initial, { ...state(), generation: 0 });
  assert.deepEqual(await readdir(directory), ['disk.pr']);
  await file.save(state(false)); // APTPL was taken back: nothing outlives the process
  assert.equal((await ReservationStateFile.open(path)).initial?.registrations.length, 0);
});

test('a save that fails leaves the old state', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await ReservationStateFile.open(join(directory, 'disk.pr'));
  await file.save(state());
  const gone = await ReservationStateFile.open(join(directory, 'no/such/folder'));
  await assert.rejects(gone.save(state()), { code: 'NOT_FOUND' });
  assert.equal((await ReservationStateFile.open(file.path)).initial?.type, 5);
});

test('a file that was tampered with is refused, and the error says what to do', async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.pr');
  const file = await ReservationStateFile.open(path);
  await file.save(state());
  const text = await readFile(path, 'utf8');
  const good = JSON.parse(text);
  const [registration] = good.registrations;
  const bad: unknown[] = [
    null,
    [],
    { ...good, version: 2 },
    { ...good, registrations: {} },
    { ...good, registrations: [{ ...registration, key: 'zz' }] },
    { ...good, registrations: [{ ...registration, key: '0000000000000000' }] },
    { ...good, registrations: [{ ...registration, transportId: '45' }] },
    { ...good, registrations: [{ ...registration, relativeTargetPort: -1 }] },
    { ...good, registrations: new Array(257).fill(registration) },
    { ...good, type: 4 },
    { ...good, holder: 1 },
    { ...good, holder: 'x' },
    { ...good, type: 7 },
  ];
  for (const content of [...bad.map((value) => JSON.stringify(value)), '', '{', `"${'x'.repeat(2 ** 20)}"`]) {
    await writeFile(path, content);
    await assert.rejects(ReservationStateFile.open(path), (error: Error & { code?: string; help?: string }) => {
      assert.equal(error.code, 'CORRUPT', content.slice(0, 200));
      assert.match(error.help ?? '', /Remove the file/);
      return true;
    });
  }
});
