import { IoVec } from '../../formats/core/iov.ts';
import { RECORD_BYTES, RECORD_CDB, RECORD_ID, RECORD_KIND } from '../io/native.ts';
import type { Nexus, ScsiTask } from '../scsi/task.ts';

const SHORT_CDB = 16;

/** A command from the ring, from its fetch to its completion. A slot: made once, refilled for each command. */
export class TcmuTask implements ScsiTask {
  readonly nexus: Nexus;
  readonly lun = 0;
  cdb: Uint8Array;
  readonly attribute = 0;
  /** The kernel's command id: unique among the commands in flight. */
  tag = 0;
  expectedLength = 0;
  dataOutLength = 0;
  dataInLength = 0;
  readonly dataOut = new IoVec();
  readonly dataIn = new IoVec();
  status = 0;
  readonly sense = new Uint8Array(252);
  senseLength = 0;
  dataInUsed = 0;
  transferLength = 0;
  aborted = false;

  /** Buffers behind `dataIn` or `dataOut`: the initiator expects to move more than the command does. */
  readonly rest = new IoVec();
  /** The ring was reset since: nobody waits for the outcome. */
  void = false;
  /** To be called when execute()'s promise resolves. Bound, so that it is no closure per command. */
  readonly done: () => void;
  readonly #shortCdb = new Uint8Array(SHORT_CDB);
  readonly #shortWords = new Uint32Array(this.#shortCdb.buffer);

  constructor(nexus: Nexus, done: (task: TcmuTask) => void) {
    this.nexus = nexus;
    this.cdb = this.#shortCdb;
    this.done = () => done(this);
  }

  /** Takes id, CDB and lengths of the record at `at`. */
  fill(words: Uint32Array, at: number): void {
    this.tag = words[at + RECORD_ID] as number;
    this.expectedLength = words[at + RECORD_BYTES] as number;
    const cdb = at + RECORD_CDB;
    const short = this.#shortWords;
    short[0] = words[cdb] as number;
    short[1] = words[cdb + 1] as number;
    short[2] = words[cdb + 2] as number;
    short[3] = words[cdb + 3] as number;
    const length = (words[at + RECORD_KIND] as number) >>> 16;
    // In memory as the record is, whatever the machine's byte order.
    this.cdb =
      length <= SHORT_CDB
        ? this.#shortCdb
        : new Uint8Array(words.slice(cdb, cdb + Math.ceil(length / 4)).buffer, 0, length);
    this.dataOutLength = 0;
    this.dataInLength = 0;
    this.status = 0;
    this.senseLength = 0;
    this.dataInUsed = 0;
    this.transferLength = 0;
    this.aborted = false;
    this.void = false;
  }

  /** Lets go of the data area. */
  release(): void {
    this.dataOut.clear();
    this.dataIn.clear();
    this.rest.clear();
  }
}
