import {
  useBooleanFlagValue, useContextMutator, useNumberFlagDetails, useStringFlagValue, useTrack,
} from '@openfeature/react-sdk';
import { Suspense, useState } from 'react';

const PLANS = ['free', 'pro', 'enterprise'];

export function App() {
  const [plan, setPlan] = useState('free');
  const { setContext } = useContextMutator();
  const choose = async (next: string) => {
    setPlan(next);
    // Rules that are evaluated here answer at once; those of the edge after one request.
    await setContext({ targetingKey: 'user-1', plan: next });
  };
  return (
    <main>
      <h1>Flags in React</h1>
      <label>
        Plan{' '}
        <select value={plan} onChange={(event) => void choose(event.target.value)}>
          {PLANS.map((one) => <option key={one}>{one}</option>)}
        </select>
      </label>
      <Suspense fallback={<p>Waiting for the first flags …</p>}>
        <Upload />
        <Checkout />
      </Suspense>
    </main>
  );
}

/** A flag whose rules travel to the page; it draws itself anew when the flag or the context changes. */
function Upload() {
  const limit = useNumberFlagDetails('upload-limit-mb', 5, { suspendUntilReady: true });
  return (
    <p>
      Files up to <output id="limit">{limit.value}</output> MB <small>({limit.reason})</small>
    </p>
  );
}

/** Flags that the edge evaluates are read in the same way. */
function Checkout() {
  const steps = useStringFlagValue('checkout', 'three-pages', { suspendUntilReady: true });
  const open = useBooleanFlagValue('payments-up', false, { suspendUntilReady: true });
  const { track } = useTrack();
  return (
    <button disabled={!open} onClick={() => track('checkout-opened')}>
      Check out, <output id="checkout">{steps}</output>
    </button>
  );
}
