import { ProtocolError } from '../../formats/core/errors.ts';
import { normalizeName } from './names.ts';
import { NO_TAG, REJECT_INVALID_FIELD, REJECT_PROTOCOL_ERROR } from './pdu.ts';
import { encodeText, parseNumber, parseText, type TextPair } from './text.ts';

/** A target as SendTargets tells of it. */
export interface TargetRecord {
  readonly name: string;
  /** `address:port,tpgt` each. */
  readonly addresses: readonly string[];
}

export interface TextContext {
  readonly discovery: boolean;
  /** Name of the target of a normal session. */
  readonly targetName: string;
  readonly maxTextLength: number;
  /** Targets that this initiator may know of. */
  targets(): TargetRecord[];
  /** Longest segment the initiator takes; it may change it. */
  maxSegment: number;
}

export interface TextAnswer {
  readonly final: boolean;
  readonly continues: boolean;
  readonly transferTag: number;
  readonly text: Uint8Array;
}

const EMPTY = new Uint8Array(0);

/** Text requests of a session in full-feature phase: SendTargets, in as many PDUs as it takes (RFC 7143 section 11.10). */
export class TextExchange {
  readonly #context: TextContext;
  #collected: Uint8Array[] = [];
  #length = 0;
  /** Tag of the exchange under way; NO_TAG when there is none. */
  #transferTag = NO_TAG;
  #lastTag = 0;
  #rest: Uint8Array | undefined;

  constructor(context: TextContext) {
    this.#context = context;
  }

  /** Takes one request. @returns the answer, or the reason to reject it, which ends the exchange */
  step(request: { final: boolean; continues: boolean; transferTag: number; data: Uint8Array }): TextAnswer | number {
    if (request.transferTag !== this.#transferTag) {
      // A new request in the middle of an exchange starts over; any other tag is from nowhere.
      if (request.transferTag !== NO_TAG) return this.#reset(REJECT_INVALID_FIELD);
      this.#reset(0);
    }
    if (this.#rest !== undefined) return this.#send(this.#rest);
    if (request.continues && request.final) return this.#reset(REJECT_PROTOCOL_ERROR);
    this.#length += request.data.length;
    if (this.#length > this.#context.maxTextLength) return this.#reset(REJECT_PROTOCOL_ERROR);
    this.#collected.push(request.data);
    if (request.continues) return { final: false, continues: false, transferTag: this.#openTag(), text: EMPTY };
    let answers: TextPair[];
    try {
      answers = this.#answer(parseText(Buffer.concat(this.#collected)));
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      return this.#reset(REJECT_PROTOCOL_ERROR);
    }
    return this.#send(encodeText(answers));
  }

  #answer(pairs: TextPair[]): TextPair[] {
    const answers: TextPair[] = [];
    const seen = new Set<string>();
    for (const [key, value] of pairs) {
      if (seen.has(key)) throw new ProtocolError('PROTOCOL', `${key} comes twice`);
      seen.add(key);
      if (key === 'SendTargets') {
        answers.push(...this.#sendTargets(value));
      } else if (key === 'MaxRecvDataSegmentLength') {
        const length = parseNumber(value);
        if (length === undefined || length < 512 || length > 0xffffff) answers.push([key, 'Reject']);
        else this.#context.maxSegment = length;
      } else {
        // No other key may be negotiated once login is over.
        answers.push([key, LOGIN_ONLY.has(key) ? 'Reject' : 'NotUnderstood']);
      }
    }
    return answers;
  }

  /** RFC 7143 appendix C: All in discovery sessions only; nothing means the target one is logged in to. */
  #sendTargets(value: string): TextPair[] {
    const { discovery, targetName } = this.#context;
    let wanted: string | undefined;
    if (value === 'All') {
      if (!discovery) return [['SendTargets', 'Reject']];
    } else if (value === '') {
      if (discovery) return [['SendTargets', 'Reject']];
      wanted = targetName;
    } else {
      wanted = normalizeName(value);
      // A normal session learns of its own target only.
      if (!discovery && wanted !== targetName) return [];
    }
    const answers: TextPair[] = [];
    for (const target of this.#context.targets()) {
      if (wanted !== undefined && target.name !== wanted) continue;
      answers.push(['TargetName', target.name]);
      for (const address of target.addresses) answers.push(['TargetAddress', address]);
    }
    return answers;
  }

  #send(text: Uint8Array): TextAnswer {
    const most = this.#context.maxSegment;
    if (text.length > most) {
      this.#rest = text.subarray(most);
      return { final: false, continues: true, transferTag: this.#openTag(), text: text.subarray(0, most) };
    }
    this.#reset(0);
    return { final: true, continues: false, transferTag: NO_TAG, text };
  }

  #openTag(): number {
    if (this.#transferTag === NO_TAG) this.#transferTag = this.#lastTag = (this.#lastTag + 1) & 0x7fffffff;
    return this.#transferTag;
  }

  #reset(result: number): number {
    this.#collected = [];
    this.#length = 0;
    this.#rest = undefined;
    this.#transferTag = NO_TAG;
    return result;
  }
}

const LOGIN_ONLY: ReadonlySet<string> = new Set([
  'HeaderDigest',
  'DataDigest',
  'MaxConnections',
  'InitialR2T',
  'ImmediateData',
  'MaxBurstLength',
  'FirstBurstLength',
  'MaxOutstandingR2T',
  'DefaultTime2Wait',
  'DefaultTime2Retain',
  'DataPDUInOrder',
  'DataSequenceInOrder',
  'ErrorRecoveryLevel',
  'AuthMethod',
  'InitiatorName',
  'TargetName',
  'SessionType',
]);
